// Package client asks a running daemon over the unix socket in its run directory.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/qos-agent/qos-agent/internal/server"
)

// Client asks the daemon of one run directory.
type Client struct {
	dir  string
	http *http.Client
}

// New makes a client; nothing is connected yet.
func New(runDir string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return server.DialUnix(ctx, runDir) }
	return &Client{dir: runDir, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// State is the daemon's state now.
func (c *Client) State(ctx context.Context) (*server.State, error) {
	var s server.State
	return &s, c.get(ctx, "/api/v1/state", nil, &s)
}

// Decisions asks the decision log; the parameters are those of GET /api/v1/decisions.
func (c *Client) Decisions(ctx context.Context, query url.Values) (*server.DecisionList, error) {
	var l server.DecisionList
	return &l, c.get(ctx, "/api/v1/decisions", query, &l)
}

func (c *Client) get(ctx context.Context, path string, query url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://qos-agent"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no daemon runs with the run directory %s: start one with `qos-agent run`, or name its directory with --run-dir", c.dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the daemon's socket in %s is for root only: use sudo", c.dir)
	case err != nil:
		return fmt.Errorf("ask the daemon in %s: %w", c.dir, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // for the message only
		return fmt.Errorf("the daemon says: %s", strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("the daemon's answer: %w", err)
	}
	return nil
}
