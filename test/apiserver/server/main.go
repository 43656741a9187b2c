// Server is a real API server of Kubernetes with the etcd that it stores in, in one process, on the loopback. It has no nodes and no
// controllers: objects are validated, admitted and stored as in a cluster, and nothing runs.
//
//	server DIR
//
// DIR/kubeconfig, which is written before it serves, makes an administrator of whoever reads it. Another signal than SIGKILL ends it.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: server DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	etcd, err := startEtcd(filepath.Join(dir, "etcd"))
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer etcd.Close()
	address, err := freeAddress()
	if err != nil {
		return err
	}
	key, tokens, certs := filepath.Join(dir, "account.key"), filepath.Join(dir, "tokens.csv"), filepath.Join(dir, "certs")
	token := rand.Text()
	if err := errors.Join(
		writeKey(key),
		os.WriteFile(tokens, []byte(token+",admin,0,system:masters\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(kubeconfig(address, filepath.Join(certs, "apiserver.crt"), token)), 0o600),
	); err != nil {
		return err
	}
	cmd := app.NewAPIServerCommand()
	cmd.SetArgs([]string{
		"--etcd-servers=" + etcd.Config().AdvertiseClientUrls[0].String(),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + address.Port(), "--cert-dir=" + certs,
		"--authorization-mode=RBAC", "--token-auth-file=" + tokens, "--service-cluster-ip-range=10.0.0.0/24", "--endpoint-reconciler-type=none",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + key, "--service-account-signing-key-file=" + key,
	})
	return cmd.Execute()
}

// startEtcd starts a store that nobody will want back.
func startEtcd(dir string) (*embed.Etcd, error) {
	client, err := freeAddress()
	if err != nil {
		return nil, err
	}
	peer, err := freeAddress()
	if err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Dir, c.LogLevel, c.UnsafeNoFsync = dir, "error", true
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	etcd, err := embed.StartEtcd(c)
	if err != nil {
		return nil, err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case <-time.After(time.Minute):
		etcd.Close()
		return nil, errors.New("not ready after a minute")
	}
}

// freeAddress is one on the loopback that nobody listened on a moment ago.
func freeAddress() (url.URL, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return url.URL{}, err
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}, nil
}

// writeKey writes a key for signing the tokens of service accounts.
func writeKey(file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func kubeconfig(address url.URL, ca, token string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- {name: here, cluster: {server: "https://%s", certificate-authority: %s}}
users:
- {name: admin, user: {token: %s}}
contexts:
- {name: admin, context: {cluster: here, user: admin}}
current-context: admin
`, address.Host, ca, token)
}
