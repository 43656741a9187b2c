// Package browser drives a real headless Chromium for tests, over its debugging pipe (--remote-debugging-pipe): messages of the
// DevTools protocol as JSON, each ended by a zero byte, on descriptors 3 and 4. No port is opened.
package browser

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait.
const patience = 3 * time.Minute

// Tab is a page in a browser of its own.
type Tab struct {
	t       *testing.T
	cmd     *exec.Cmd
	out     *os.File
	session string

	mu      sync.Mutex
	next    int
	waiting map[int]chan message
	faults  []string
	ended   chan struct{}
}

type message struct {
	ID        int             `json:"id,omitempty"`
	Method    string          `json:"method,omitempty"`
	SessionID string          `json:"sessionId,omitempty"`
	Params    json.RawMessage `json:"params,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// New starts a browser, which ends with the test, and opens an empty page of that size. Without Chromium the test is skipped.
func New(t *testing.T, width, height int) *Tab {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs chromium: package chromium is not installed")
	}
	// Not t.TempDir: the browser may still be writing there when the test ends.
	profile, err := os.MkdirTemp("", "qos-agent-browser-")
	if err != nil {
		t.Fatal(err)
	}
	theirIn, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	tab := &Tab{t: t, out: out, waiting: map[int]chan message{}, ended: make(chan struct{})}
	tab.cmd = exec.Command(program, "--headless", "--no-sandbox", "--remote-debugging-pipe", "--user-data-dir="+profile, "--no-first-run",
		"--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "about:blank")
	tab.cmd.Env = append(os.Environ(), "HOME="+profile, "TMPDIR="+profile) // its sockets would stay behind in /tmp
	tab.cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	tab.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := tab.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = theirIn.Close(), theirOut.Close()
	go tab.read(in)
	t.Cleanup(func() {
		_ = syscall.Kill(-tab.cmd.Process.Pid, syscall.SIGKILL) // with its helpers
		_ = tab.cmd.Wait()
		<-tab.ended
		_ = out.Close()
		for range 20 { // helpers of the browser may outlive it by a moment
			if os.RemoveAll(profile) == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("%s cannot be removed", profile)
	})

	var target struct {
		TargetID string `json:"targetId"`
	}
	tab.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var session struct {
		SessionID string `json:"sessionId"`
	}
	tab.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &session)
	tab.session = session.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		tab.call(domain+".enable", nil, nil)
	}
	tab.Size(width, height)
	return tab
}

// read takes messages until the browser ends.
func (tab *Tab) read(in *os.File) {
	defer close(tab.ended)
	defer in.Close()
	r := bufio.NewReaderSize(in, 1<<20)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		tab.mu.Lock()
		if c := tab.waiting[m.ID]; m.ID != 0 && c != nil {
			delete(tab.waiting, m.ID)
			c <- m
		} else if f := fault(&m); f != "" {
			tab.faults = append(tab.faults, f)
		}
		tab.mu.Unlock()
	}
}

// fault is what went wrong in the page, if that is what a message tells.
func fault(m *message) string {
	var p struct {
		ExceptionDetails struct {
			Text      string `json:"text"`
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
		Entry struct {
			Level, Source, Text, URL string
		} `json:"entry"`
		Type string `json:"type"`
		Args []struct {
			Value any `json:"value"`
		} `json:"args"`
	}
	_ = json.Unmarshal(m.Params, &p) // what does not fit is none of these
	switch {
	case m.Method == "Runtime.exceptionThrown":
		return p.ExceptionDetails.Text + " " + p.ExceptionDetails.Exception.Description
	case m.Method == "Log.entryAdded" && p.Entry.Level == "error":
		return p.Entry.Source + ": " + p.Entry.Text + " " + p.Entry.URL
	case m.Method == "Runtime.consoleAPICalled" && p.Type == "error":
		return fmt.Sprint("console: ", p.Args)
	}
	return ""
}

// Faults is every exception, console error, failed request and violation of the content security policy so far.
func (tab *Tab) Faults() []string {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	return append([]string(nil), tab.faults...)
}

func (tab *Tab) call(method string, params, into any) {
	tab.t.Helper()
	if err := tab.try(method, params, into); err != nil {
		tab.t.Fatalf("%s: %v", method, err)
	}
}

func (tab *Tab) try(method string, params, into any) error {
	c := make(chan message, 1)
	tab.mu.Lock()
	tab.next++
	m := message{ID: tab.next, Method: method, SessionID: tab.session}
	tab.waiting[m.ID] = c
	tab.mu.Unlock()
	if params != nil {
		var err error
		if m.Params, err = json.Marshal(params); err != nil {
			return err
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := tab.out.Write(append(text, 0)); err != nil {
		return err
	}
	select {
	case answer := <-c:
		if answer.Error != nil {
			return errors.New(answer.Error.Message)
		}
		if into == nil {
			return nil
		}
		return json.Unmarshal(answer.Result, into)
	case <-tab.ended:
		return errors.New("the browser has ended")
	case <-time.After(patience):
		return errors.New("no answer")
	}
}

// Open goes to a URL.
func (tab *Tab) Open(url string) {
	tab.t.Helper()
	var r struct {
		ErrorText string `json:"errorText"`
	}
	tab.call("Page.navigate", map[string]any{"url": url}, &r)
	if r.ErrorText != "" {
		tab.t.Fatalf("open %s: %s", url, r.ErrorText)
	}
}

// Eval evaluates a JavaScript expression, waits for it if it is a promise, and decodes its value.
func (tab *Tab) Eval(expression string, into any) {
	tab.t.Helper()
	if err := tab.eval(expression, into); err != nil {
		tab.t.Fatalf("%s: %v", expression, err)
	}
}

func (tab *Tab) eval(expression string, into any) error {
	var r struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		ExceptionDetails *struct {
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
	}
	if err := tab.try("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r); err != nil {
		return err
	}
	if r.ExceptionDetails != nil {
		return errors.New(r.ExceptionDetails.Exception.Description)
	}
	if into == nil || r.Result.Value == nil {
		return nil
	}
	return json.Unmarshal(r.Result.Value, into)
}

// Wait waits until an expression is true.
func (tab *Tab) Wait(expression string) {
	tab.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var ok bool
		err := tab.eval("Boolean("+expression+")", &ok)
		if ok {
			return
		}
		if time.Now().After(end) {
			var text string
			_ = tab.eval("document.body.innerText.slice(0, 3000)", &text) // for the message only
			tab.t.Fatalf("waiting for %s: %v; faults: %s; the page shows:\n%s", expression, err, strings.Join(tab.Faults(), "\n"), text)
		}
	}
}

// Size sets the size of the window in CSS pixels.
func (tab *Tab) Size(width, height int) {
	tab.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
}

// Dark makes the system's colour scheme dark or light.
func (tab *Tab) Dark(dark bool) {
	value := "light"
	if dark {
		value = "dark"
	}
	tab.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": value}}}, nil)
}

// Key presses and releases keys one after another: single characters, "Tab", "Enter", "Escape".
func (tab *Tab) Key(keys ...string) {
	codes := map[string]int{"Tab": 9, "Enter": 13, "Escape": 27}
	for _, k := range keys {
		down := map[string]any{"type": "keyDown", "key": k}
		if code, ok := codes[k]; ok {
			down["windowsVirtualKeyCode"] = code
			if k == "Enter" {
				down["text"] = "\r"
			}
		} else {
			down["text"] = k
		}
		tab.call("Input.dispatchKeyEvent", down, nil)
		tab.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": k}, nil)
	}
}

// Paper shows the page as it is printed, between a beforeprint event and an afterprint event, while look runs.
func (tab *Tab) Paper(look func()) {
	tab.t.Helper()
	tab.call("Emulation.setEmulatedMedia", map[string]any{"media": "print"}, nil)
	tab.Eval("(window.dispatchEvent(new Event('beforeprint')), 0)", nil)
	look()
	tab.Eval("(window.dispatchEvent(new Event('afterprint')), 0)", nil)
	tab.call("Emulation.setEmulatedMedia", map[string]any{"media": ""}, nil)
}

// Print prints the page on A4 and returns how many sheets it took. The PDF is written as a picture is; see Screenshot.
func (tab *Tab) Print(name string) (sheets int) {
	tab.t.Helper()
	var r struct {
		Data string `json:"data"`
	}
	tab.call("Page.printToPDF", map[string]any{"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": false}, &r)
	pdf, err := base64.StdEncoding.DecodeString(r.Data)
	if err != nil || !bytes.HasPrefix(pdf, []byte("%PDF-")) {
		tab.t.Fatalf("a PDF of %d bytes: %v", len(pdf), err)
	}
	if dir := os.Getenv("QOS_AGENT_SCREENSHOTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+".pdf"), pdf, 0o644); err != nil {
			tab.t.Fatal(err)
		}
	}
	return bytes.Count(pdf, []byte("/Type /Page\n"))
}

// Screenshot writes a picture of the whole page, or of the window only, as NAME.png into the directory that QOS_AGENT_SCREENSHOTS
// names; without that it only proves that the page can be drawn.
func (tab *Tab) Screenshot(name string, whole bool) {
	tab.t.Helper()
	var r struct {
		Data string `json:"data"`
	}
	tab.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": whole}, &r)
	picture, err := base64.StdEncoding.DecodeString(r.Data)
	if err != nil || len(picture) < 1000 {
		tab.t.Fatalf("picture of %d bytes: %v", len(picture), err)
	}
	if dir := os.Getenv("QOS_AGENT_SCREENSHOTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644); err != nil {
			tab.t.Fatal(err)
		}
	}
}
