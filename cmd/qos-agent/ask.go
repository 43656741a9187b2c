package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/qos-agent/qos-agent/internal/client"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/explain"
	"github.com/qos-agent/qos-agent/internal/human"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/internal/top"
)

// daemonAt is how the commands that ask a daemon find it.
type daemonAt struct {
	RunDir string `default:"${run_dir}" placeholder:"DIR" help:"Run directory of the daemon."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (d *daemonAt) client() *client.Client { return client.New(d.RunDir) }

type topCmd struct {
	daemonAt
	Interval time.Duration `default:"1s" help:"Time between two looks, at least 200ms."`
	Once     bool          `help:"Print it once as plain text; so it is where there is no terminal."`
	Sort     string        `default:"state" enum:"${top_sorts}" help:"Column to sort by: ${enum}."`
	Filter   string        `placeholder:"TEXT" help:"Only pods whose namespace/name holds this."`
	Class    string        `default:"" enum:",online,offline,unclassified" placeholder:"CLASS" help:"Only pods of this class: online, offline, unclassified."`
}

// Validate is called by kong.
func (c *topCmd) Validate() error {
	if c.Interval < 200*time.Millisecond {
		return fmt.Errorf("--interval %v: want at least 200ms", c.Interval)
	}
	return nil
}

func (c *topCmd) Run(e env) error {
	o := top.Options{Source: c.client(), Interval: c.Interval, Sort: c.Sort, Filter: c.Filter, Class: c.Class}
	if c.JSON {
		s, err := c.client().State(e.ctx)
		if err != nil {
			return err
		}
		return printJSON(e, s)
	}
	out, isFile := e.stdout.(*os.File)
	if c.Once || !isFile || !term.IsTerminal(int(out.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) || os.Getenv("TERM") == "dumb" {
		return top.Text(e.ctx, e.stdout, o)
	}
	if _, err := c.client().State(e.ctx); err != nil {
		return err // on the ordinary screen, where it stays
	}
	return top.Screen(e.ctx, os.Stdin, out, o)
}

type explainCmd struct {
	daemonAt
	Pod string `arg:"" placeholder:"NAMESPACE/NAME" help:"The pod; a part of the name will do if it fits one pod only."`
}

func (c *explainCmd) Run(e env) error {
	s, err := c.client().State(e.ctx)
	if err != nil {
		return err
	}
	pod, err := explain.Find(s, c.Pod)
	if err != nil {
		return err
	}
	log, err := c.client().Decisions(e.ctx, url.Values{"pod": {pod.Namespace + "/" + pod.Name}, "limit": {"50"}})
	if err != nil {
		return err
	}
	x := explain.Of(s, pod, log.Entries)
	if c.JSON {
		return printJSON(e, x)
	}
	return x.WriteText(e.stdout)
}

type eventsCmd struct {
	daemonAt
	Since  string `default:"1h" placeholder:"TIME" help:"From when on: a duration back from now such as 15m, or a time such as 2026-11-24T12:00:00Z."`
	Follow bool   `short:"f" help:"Go on with what comes."`
	Pod    string `placeholder:"TEXT" help:"Only about, or for the sake of, pods whose namespace/name holds this."`
	Kind   string `default:"" enum:",decision,write,policy,pods,agent" placeholder:"KIND" help:"Only of this kind: decision, write, policy, pods, agent."`
	Rule   string `placeholder:"RULE" help:"Only by this rule, such as event-cut."`
	Result string `placeholder:"RESULT" help:"Only with this result, such as failed."`
	Limit  int    `default:"1000" help:"The newest so many."`
}

// Validate is called by kong.
func (c *eventsCmd) Validate() error {
	if _, err := server.ParseSince(c.Since, time.Now()); err != nil {
		return fmt.Errorf("--%w", err)
	}
	return nil
}

func (c *eventsCmd) Run(e env) error {
	query := url.Values{"since": {c.Since}, "limit": {strconv.Itoa(c.Limit)}}
	for name, value := range map[string]string{"pod": c.Pod, "kind": c.Kind, "rule": c.Rule, "result": c.Result} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for first := true; ; first = false {
		l, err := c.client().Decisions(e.ctx, query)
		switch {
		case errors.Is(err, context.Canceled):
			return nil
		case err != nil:
			return err
		}
		if !first && l.Last < after(query) { // another daemon, whose log begins anew
			query.Set("after", "0")
			continue
		}
		for i := range l.Entries {
			if err := c.print(e, &l.Entries[i]); err != nil {
				return err
			}
		}
		if !c.Follow {
			return nil
		}
		query.Del("since")
		query.Set("after", strconv.FormatUint(l.Last, 10))
		query.Set("wait", "10s")
	}
}

func after(query url.Values) uint64 {
	n, _ := strconv.ParseUint(query.Get("after"), 10, 64) // we wrote it
	return n
}

// print writes an entry: as a line of text, or as a line of JSON.
func (c *eventsCmd) print(e env, entry *decisionlog.Entry) error {
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(entry)
	}
	_, err := fmt.Fprintln(e.stdout, human.Entry(entry, time.DateTime))
	return err
}

func printJSON(e env, v any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// topSorts is for the parser.
func topSorts() string { return strings.Join(top.Sorts(), ",") }
