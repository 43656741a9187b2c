package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/internal/actuate"
	"github.com/qos-agent/qos-agent/internal/agent"
	"github.com/qos-agent/qos-agent/internal/asynclog"
	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/classes"
	"github.com/qos-agent/qos-agent/internal/clock"
	"github.com/qos-agent/qos-agent/internal/collect"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/kubeevents"
	"github.com/qos-agent/qos-agent/internal/page"
	"github.com/qos-agent/qos-agent/internal/pods"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/privilege"
	"github.com/qos-agent/qos-agent/internal/sched"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/pkg/perf"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// Bounds of --interval. Below 10 ms a tick would cost more than it tells; above 10 s nobody is protected.
const (
	minInterval = 10 * time.Millisecond
	maxInterval = 10 * time.Second
)

type runCmd struct {
	PolicyDir   string        `placeholder:"DIR" help:"Directory of policy files, such as a mounted ConfigMap. Default: the built-in policy."`
	Pods        string        `enum:"cri,static" default:"cri" help:"Where pods come from: ${enum}."`
	CRIEndpoint string        `name:"cri-endpoint" placeholder:"URL" help:"Container runtime's socket (unix:///...); default: the first that answers of those where runtimes usually listen, looked for again until one does."`
	StaticPods  string        `placeholder:"FILE" help:"File that lists pods, with --pods static."`
	CgroupRoot  string        `default:"/sys/fs/cgroup" help:"Where control groups are mounted."`
	RunDir      string        `default:"${run_dir}" help:"Directory for the journal and the lock; on a tmpfs."`
	Listen      string        `default:"127.0.0.1:9476" placeholder:"ADDR:PORT" help:"Where to serve /metrics and health; on a loopback address the page and the state API as well."`
	Interval    time.Duration `default:"100ms" help:"Time between ticks, 10ms to 10s."`
	Mode        string        `enum:",observe,enforce" default:"" placeholder:"MODE" help:"Override the policy's mode: observe (write nothing) or enforce."`
	Realtime    bool          `default:"true" negatable:"" help:"Run the loop's one thread in the real-time class, within a budget."`
	BPFStats    bool          `name:"bpf-stats" default:"true" negatable:"" help:"Have the kernel account the run time of BPF programs."`
	Perf        bool          `default:"true" negatable:"" help:"Count cycles and cache misses of pods with hardware counters. Without, others have them to themselves, and nobody is blamed for cache or memory bandwidth."`
	NodeName    string        `env:"NODE_NAME" placeholder:"NAME" help:"Name of the node, for people; default: the host's name, which in a pod is the pod's."`
	DropCaps    bool          `name:"drop-capabilities" default:"true" negatable:"" help:"Give up capabilities that are not needed any more once everything is loaded."`
	LogFormat   string        `enum:"text,json" default:"text" help:"Format of the log on stderr: ${enum}."`
	LogLevel    slog.Level    `default:"info" help:"Least level that is logged: debug, info, warn, error."`

	APIListen    string `name:"api-listen" placeholder:"ADDR:PORT" help:"Where to serve the page and the state API besides; beyond loopback only with TLS and one of client certificates, users, a token."`
	APIWebConfig string `name:"api-web-config" placeholder:"FILE" help:"TLS, client certificates and users of --api-listen, in the format of Prometheus's exporter toolkit; read anew for every connection."`
	APITokenFile string `name:"api-token-file" placeholder:"FILE" help:"Bearer token that --api-listen asks for; read anew for every request."`

	recordFlags `embed:""`

	DecisionLogDir   string `name:"decision-log-dir" placeholder:"DIR" help:"Directory of the decision log's files; default: the run directory."`
	DecisionLogMiB   int    `name:"decision-log-mib" default:"4" help:"Size at which a file of the decision log is put aside, MiB."`
	DecisionLogFiles int    `name:"decision-log-files" default:"3" help:"How many files of the decision log are kept; 0: none are written."`
	KubeEvents       bool   `name:"kube-events" help:"Tell Kubernetes of cuts as Events of the pod; needs a service account that may create events of group events.k8s.io."`
}

// Validate is called by kong.
func (c *runCmd) Validate() error {
	if c.Interval < minInterval || c.Interval > maxInterval {
		return fmt.Errorf("--interval %v: want %v to %v", c.Interval, minInterval, maxInterval)
	}
	if c.Pods == "static" && c.StaticPods == "" {
		return errors.New("--pods static: want --static-pods FILE as well")
	}
	if c.Pods != "static" && c.StaticPods != "" {
		return errors.New("--static-pods: want --pods static as well")
	}
	if c.APIListen == "" && c.APIWebConfig+c.APITokenFile != "" {
		return errors.New("--api-web-config, --api-token-file: want --api-listen as well")
	}
	if c.KubeEvents && c.Pods == "static" {
		return errors.New("--kube-events: the pods of --pods static are not Kubernetes's")
	}
	if err := c.recordFlags.check(); err != nil {
		return err
	}
	if c.DecisionLogMiB < 1 || c.DecisionLogFiles < 0 {
		return errors.New("--decision-log-mib, --decision-log-files: want at least 1 MiB and no negative number of files")
	}
	return nil
}

// Run builds the parts in the order in which they can fail without having touched anything, and runs them.
func (c *runCmd) Run(e env) (err error) {
	// A reader of the log that goes away must not take the daemon with it, which would leave its knobs behind.
	signal.Ignore(syscall.SIGPIPE)
	handler := asynclog.New(c.handler(e))
	defer handler.Close()
	log := slog.New(handler)

	first, err := c.policy()
	if err != nil {
		return err
	}
	hierarchy, err := cgroup.Detect(c.CgroupRoot)
	if err != nil {
		return err
	}
	source, err := c.source(hierarchy, log)
	if err != nil {
		return err
	}
	endpoints, err := c.listen()
	defer func() {
		for i := range endpoints {
			_ = endpoints[i].Listener.Close() // again after the server: that is harmless
		}
	}()
	if err != nil {
		return err
	}
	executor, err := actuate.Open(actuate.Options{Hierarchy: hierarchy, RunDir: c.RunDir, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, executor.Close()) }()
	resctrl, err := c.resctrl(first, hierarchy, log)
	if err != nil {
		return err
	}
	if resctrl != nil {
		defer func() { err = errors.Join(err, resctrl.Close()) }()
	}
	socket, err := server.ListenUnix(c.RunDir)
	if err != nil {
		return err
	}
	endpoints = append(endpoints, server.Endpoint{Listener: socket, Everything: true})
	sinks, err := c.kubeEvents(e.ctx, source, log)
	if err != nil {
		return err
	}
	decisions, err := decisionlog.Open(decisionlog.Options{Files: c.decisionFiles(), Sinks: sinks, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, decisions.Close()) }()
	return c.serve(e.ctx, parts{log, handler, first, hierarchy, source, endpoints, executor, resctrl, decisions})
}

// resctrl opens what controls caches and memory bandwidth; nil where there is none, or it may not be used.
func (c *runCmd) resctrl(first *policy.Compiled, h *cgroup.Hierarchy, log *slog.Logger) (*classes.Executor, error) {
	x, err := classes.Open(classes.Options{RunDir: c.RunDir, Threads: h.Threads, MayMount: first.At(time.Now()).RDT.Mount, Log: log})
	if errors.Is(err, rdt.ErrNotMounted) || errors.Is(err, rdt.ErrUnsupported) {
		log.Info("caches and memory bandwidth are neither seen nor partitioned", "reason", err)
		return nil, nil
	}
	return x, err
}

// listen opens the addresses that others reach. What it has opened when it fails is returned too.
func (c *runCmd) listen() (endpoints []server.Endpoint, err error) {
	add := func(addr, flag string, everything func(net.Listener) bool, access server.Access) error {
		l, err := server.Listen(addr)
		if err != nil {
			return err
		}
		e := server.Endpoint{Listener: l, Everything: everything(l), Access: access}
		endpoints = append(endpoints, e)
		return e.Check(flag)
	}
	if err := add(c.Listen, "--listen", server.Loopback, server.Access{}); err != nil || c.APIListen == "" {
		return endpoints, err
	}
	always := func(net.Listener) bool { return true }
	return endpoints, add(c.APIListen, "--api-listen", always, server.Access{WebConfig: c.APIWebConfig, TokenFile: c.APITokenFile})
}

// kubeEvents starts what tells Kubernetes of decisions, if that is wanted. It ends with ctx; nothing waits for it.
func (c *runCmd) kubeEvents(ctx context.Context, source pods.Source, log *slog.Logger) ([]func(*decisionlog.Entry), error) {
	if !c.KubeEvents {
		return nil, nil
	}
	o, err := kubeevents.InCluster()
	if err != nil {
		return nil, err
	}
	hostname, _ := os.Hostname() // NODE_NAME is better, and the chart sets it
	o.Node, o.Log = cmp.Or(os.Getenv("NODE_NAME"), hostname, "unknown"), log
	o.UID = func(namespace, name string) string {
		for _, p := range source.Pods() {
			if p.Namespace == namespace && p.Name == name {
				return p.UID
			}
		}
		return ""
	}
	poster, err := kubeevents.New(o)
	if err != nil {
		return nil, err
	}
	go poster.Run(ctx)
	return []func(*decisionlog.Entry){poster.Sink}, nil
}

func (c *runCmd) decisionFiles() decisionlog.Files {
	if c.DecisionLogFiles == 0 {
		return decisionlog.Files{}
	}
	return decisionlog.Files{Dir: cmp.Or(c.DecisionLogDir, c.RunDir), MaxBytes: int64(c.DecisionLogMiB) << 20, Count: c.DecisionLogFiles}
}

// parts are what Run has built.
type parts struct {
	log       *slog.Logger
	queue     *asynclog.Handler
	policy    *policy.Compiled
	hierarchy *cgroup.Hierarchy
	source    pods.Source
	endpoints []server.Endpoint
	executor  *actuate.Executor
	classes   *classes.Executor // may be nil
	decisions *decisionlog.Log
}

// serve probes the node, loads what it can do, and runs loop and server until ctx is done.
func (c *runCmd) serve(ctx context.Context, p parts) (err error) {
	log := p.log
	log.Info("started with", "capabilities", privilege.Held())
	// The loop's thread needs a processor of the Go runtime at once when it comes back from the kernel, also while a scrape and
	// the garbage collector have one each.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(4)
	}
	if err := sched.RelaxMonitor(sched.MonitorSlack); err != nil {
		log.Warn("the agent wakes up more often than it would have to", "reason", err)
	}
	if err := sched.NiceProcess(sched.OwnNice); err != nil {
		log.Debug("nice value stays", "error", err)
	}

	tracer, traceErr := ebpf.Load(ebpf.Options{RunStats: c.BPFStats})
	if traceErr == nil {
		defer func() { err = errors.Join(err, tracer.Close()) }()
		if err := tracer.RunStatsErr(); err != nil {
			log.Warn("the cost of the BPF programs is not shown", "error", err)
		}
	}
	report := capability.Run(ctx, capability.Options{
		CgroupRoot: c.CgroupRoot, CRIEndpoints: c.endpoints(), NoPerf: !c.Perf,
		Trace: func() error { return traceErr }, // it has just been tried for good
	})
	for _, probe := range report.Probes {
		if !probe.OK {
			log.Info("missing", "capability", probe.Name, "detail", probe.Detail, "lost", probe.Lost)
		}
	}

	options := collect.Options{
		Hierarchy: p.hierarchy, Clock: clock.System{}, Log: log, Caps: report.Capabilities(), OriginalCPUs: p.executor.OriginalCPUs,
	}
	options.Caps.NestedLimits = p.hierarchy.V2(cgroup.CPU) && p.hierarchy.V2(cgroup.CPUSet)
	if x := p.classes; x != nil {
		options.Resctrl, options.MonitorGroup, options.RDT = x.FS(), x.MonitorGroup, collect.Facts(x.Info(), "/sys")
	}
	if options.Caps.Perf {
		pool := perf.NewPool(perf.Options{})
		defer func() { err = errors.Join(err, pool.Close()) }()
		options.Counters = pool
	}
	baselines, baselinesErr := agent.LoadBaselines(c.RunDir)
	if baselinesErr != nil {
		log.Warn("what an earlier run has learned is not used", "error", baselinesErr)
	}
	if traceErr == nil {
		options.Tracer = tracer
	} else {
		tracer = nil
		log.Error("run-queue waits are not measured: nobody will be blamed or cut, only the posture is left", "error", traceErr)
	}
	collector, err := collect.New(options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, collector.Close()) }()

	hostname := c.NodeName
	if hostname == "" {
		hostname, _ = os.Hostname() // for people only
	}
	recorder, err := c.recorder(trace.Info{Agent: version, Hostname: hostname, Kernel: kernelRelease(), Interval: c.Interval}, report, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, recorder.Close()) }()
	instruments := new(server.Instruments)
	loop, err := agent.New(agent.Options{
		Version: version, Hostname: hostname, Kernel: kernelRelease(),
		Interval: c.Interval, Mode: policy.Mode(c.Mode), Realtime: c.Realtime, RunDir: c.RunDir, SourceKind: c.Pods,
		Hierarchy: p.hierarchy, Tracer: tracer, Collector: collector, Executor: p.executor, Classes: p.classes, Source: p.source,
		Policy: p.policy, WatchPolicy: c.watch(log), Capabilities: report, Instruments: instruments, Baselines: baselines, Decisions: p.decisions,
		Recorder: recorder,
		Log:      log, LogDropped: p.queue.Dropped, Clock: clock.System{},
	})
	if err != nil {
		return err
	}
	web, err := server.New(server.Options{
		Provider: loop, Decisions: p.decisions, Page: page.New(loop, log), Instruments: instruments, Version: version, Log: log,
	})
	if err != nil {
		return err
	}
	if c.DropCaps {
		c.dropCapabilities(p, tracer, report)
	}
	log.Info("qos-agent", "version", version, "listen", p.endpoints[0].Listener.Addr(), "policy", p.policy.Name(), "id", p.policy.ID(),
		"cgroups", p.hierarchy.Mode(), "interval", c.Interval, "pods", c.Pods)
	return runBoth(ctx, loop.Run, func(ctx context.Context) error { return web.Serve(ctx, p.endpoints...) })
}

// runBoth runs loop and server; when one ends, so does the other. The loop ends last, since it has to put things back.
func runBoth(ctx context.Context, loop, web func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	webErr := make(chan error, 1)
	go func() {
		webErr <- web(ctx)
		cancel()
	}()
	err := loop(ctx)
	cancel()
	return errors.Join(err, <-webErr)
}

func (c *runCmd) handler(e env) slog.Handler {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.NewJSONHandler(e.stderr, o)
	}
	return slog.NewTextHandler(e.stderr, o)
}

// policy loads the first policy. Later ones come from watch.
func (c *runCmd) policy() (*policy.Compiled, error) {
	if c.PolicyDir == "" {
		def := policy.Default()
		return policy.Compile(&def)
	}
	p, err := policy.Load(c.PolicyDir)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return policy.Compile(p)
}

func (c *runCmd) watch(log *slog.Logger) func(context.Context, func(*policy.Compiled, error)) {
	return func(ctx context.Context, onChange func(*policy.Compiled, error)) {
		if c.PolicyDir == "" {
			return
		}
		policy.Watch(ctx, c.PolicyDir, policy.WatchOptions{Log: log}, onChange)
	}
}

func kernelRelease() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease") // for people only
	return strings.TrimSpace(string(text))
}

// source builds the pod source. A runtime that is not there yet is no error; a bad file is.
func (c *runCmd) source(h *cgroup.Hierarchy, log *slog.Logger) (pods.Source, error) {
	if c.Pods == "static" {
		return pods.NewStatic(pods.StaticOptions{File: c.StaticPods, Hierarchy: h, Log: log})
	}
	return pods.NewCRI(pods.CRIOptions{Endpoints: c.endpoints(), Hierarchy: h, Log: log})
}

// endpoints is the runtime's socket as given, or where runtimes usually listen.
func (c *runCmd) endpoints() []string {
	if c.CRIEndpoint != "" {
		return []string{c.CRIEndpoint}
	}
	return capability.DefaultEndpoints()
}
