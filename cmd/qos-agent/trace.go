package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/trace"
)

type traceCmd struct {
	Info   traceInfoCmd   `cmd:"" help:"Say what is in recordings."`
	Cut    traceCutCmd    `cmd:"" help:"Write a part of a recording as one of its own."`
	Export traceExportCmd `cmd:"" help:"Write recordings as tables, for DuckDB, pandas or Spark."`
	Import traceImportCmd `cmd:"" help:"Make a recording of a public trace."`
}

type traceInfoCmd struct {
	Traces []string `arg:"" name:"trace" help:"Recordings, or directories of them."`
	JSON   bool     `name:"json" help:"Print it as JSON."`
	Count  bool     `help:"Read everything: count steps, pods and containers, and say what takes the bytes."`
}

// summary is what trace info shows of a file.
type summary struct {
	File     string    `json:"file"`
	Bytes    int64     `json:"bytes"`
	Complete bool      `json:"complete"`
	Torn     string    `json:"torn,omitempty"`
	Agent    string    `json:"agent"`
	Host     string    `json:"host"`
	Kernel   string    `json:"kernel"`
	Arch     string    `json:"arch"`
	Run      string    `json:"run"`
	Part     int       `json:"part"`
	Interval string    `json:"interval"`
	Note     string    `json:"note,omitempty"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Keys     int       `json:"keyFrames"`
	States   int       `json:"checkpoints"`
	Policies []string  `json:"policies"`
	Missing  []string  `json:"notRecorded,omitempty"`
	Unknown  []string  `json:"notKnownHere,omitempty"`
	Lacks    []string  `json:"nodeLacks,omitempty"`

	Steps         uint64  `json:"steps,omitempty"`
	Events        uint64  `json:"eventSteps,omitempty"`
	Dropped       uint64  `json:"dropped,omitempty"`
	Outcomes      uint64  `json:"outcomes,omitempty"`
	MaxPods       int     `json:"maxPods,omitempty"`
	MaxContainers int     `json:"maxContainers,omitempty"`
	BytesAHour    float64 `json:"bytesPerContainerHour,omitempty"`
	// Content is what takes the bytes, the most first.
	Content []content `json:"content,omitempty"`
}

// content is a kind of thing in a recording.
type content struct {
	Kind  string `json:"kind"`
	Bytes int64  `json:"bytes"` // in the file
	Plain int64  `json:"plain"` // before compression
}

func (c traceInfoCmd) Run(e env) error {
	files, err := trace.Files(c.Traces...)
	if err != nil {
		return err
	}
	var out []summary
	var errs []error
	for _, f := range files {
		s, err := c.summarise(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, s)
		if !c.JSON {
			s.print(e.stdout)
		}
	}
	if c.JSON {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		errs = append(errs, enc.Encode(out))
	}
	return errors.Join(errs...)
}

func (c traceInfoCmd) summarise(file string) (s summary, err error) {
	r, err := trace.Open(file)
	if err != nil {
		return s, err
	}
	defer r.Close()
	i := r.Info()
	s = summary{
		File: file, Bytes: r.Size(), Complete: r.Complete(), Agent: i.Agent, Host: i.Hostname, Kernel: i.Kernel, Arch: i.Arch, Run: i.Run, Part: i.Part,
		Interval: i.Interval.String(), Note: i.Note, Missing: r.Missing(), Unknown: r.Dropped(),
	}
	if s.First, s.Last, err = r.Range(); err != nil {
		return s, err
	}
	s.First, s.Last = s.First.In(i.Started.Location()), s.Last.In(i.Started.Location())
	for _, k := range r.Index() {
		switch {
		case k.Policy:
		case k.State:
			s.States++
			s.Keys++
		default:
			s.Keys++
		}
	}
	for _, p := range r.Policies() {
		s.Policies = append(s.Policies, p.Name()+" "+p.ID())
	}
	for _, k := range i.Capabilities {
		if !k.OK {
			s.Lacks = append(s.Lacks, k.Name)
		}
	}
	if c.Count {
		err = s.count(r)
	}
	return s, err
}

func (s *summary) count(r *trace.Reader) error {
	hours := 0.0
	for {
		step, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		snap := step.Snapshot
		s.Steps++
		if snap.Trigger != 0 {
			s.Events++
		}
		s.Dropped += step.Dropped
		s.Outcomes += uint64(len(step.Outcomes))
		s.MaxPods, s.MaxContainers = max(s.MaxPods, len(snap.Pods)), max(s.MaxContainers, len(snap.Containers))
		hours += snap.Elapsed.Hours() * float64(len(snap.Containers))
	}
	if r.Torn() != nil {
		s.Torn = r.Torn().Error()
	}
	if hours > 0 {
		s.BytesAHour = float64(s.Bytes) / hours
	}
	rest := s.Bytes
	for i, b := range r.Bytes() {
		rest -= b.Packed
		s.Content = append(s.Content, content{trace.StreamName(i), b.Packed, b.Raw})
	}
	s.Content = append(s.Content, content{"node facts, policies, checkpoints, headers", rest, rest})
	slices.SortStableFunc(s.Content, func(a, b content) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return nil
}

func (s *summary) print(w io.Writer) {
	state := "complete"
	if !s.Complete {
		state = "not closed (its daemon still records, or was killed)"
	}
	fmt.Fprintf(w, "%s: %d bytes, %s\n", s.File, s.Bytes, state)
	fmt.Fprintf(w, "  recorded by qos-agent %s on %s (kernel %s, %s), run %s part %d, a tick each %s\n", s.Agent, s.Host, s.Kernel, s.Arch, s.Run, s.Part, s.Interval)
	fmt.Fprintf(w, "  %s to %s, %d key frames, %d checkpoints\n", s.First.Format(time.RFC3339), s.Last.Format(time.RFC3339), s.Keys, s.States)
	line := func(what string, list []string) {
		for i, t := range list {
			if i == 0 {
				fmt.Fprintf(w, "  %s: %s", what, t)
			} else {
				fmt.Fprintf(w, ", %s", t)
			}
		}
		if len(list) > 0 {
			fmt.Fprintln(w)
		}
	}
	if s.Note != "" {
		fmt.Fprintf(w, "  %s\n", s.Note)
	}
	line("policies", s.Policies)
	line("the node lacks", s.Lacks)
	line("not recorded by that version", s.Missing)
	line("not known to this version", s.Unknown)
	if s.Torn != "" {
		fmt.Fprintf(w, "  torn end: %s\n", s.Torn)
	}
	if s.Steps > 0 {
		fmt.Fprintf(w, "  %d steps, %d of them events, %d dropped; %d outcomes; up to %d containers in %d pods; %.0f bytes per container and hour\n",
			s.Steps, s.Events, s.Dropped, s.Outcomes, s.MaxContainers, s.MaxPods, s.BytesAHour)
		for _, c := range s.Content {
			fmt.Fprintf(w, "  %5.1f %%  %10d bytes (%d before compression)  %s\n", 100*float64(c.Bytes)/float64(s.Bytes), c.Bytes, c.Plain, c.Kind)
		}
	}
}
