package main

import (
	"github.com/qos-agent/qos-agent/internal/capability"
)

type doctorCmd struct {
	JSON        bool     `name:"json" help:"Print JSON."`
	CgroupRoot  string   `default:"/sys/fs/cgroup" help:"Where control groups are mounted."`
	CRIEndpoint []string `name:"cri-endpoint" placeholder:"URL" help:"Container runtime's socket; default: where runtimes usually listen."`
}

func (c doctorCmd) Run(e env) error {
	r := capability.Run(e.ctx, capability.Options{CgroupRoot: c.CgroupRoot, CRIEndpoints: c.CRIEndpoint})
	if err := c.print(e, &r); err != nil {
		return err
	}
	if !r.CanRun() {
		return silentError(exitFailure)
	}
	return nil
}

func (c doctorCmd) print(e env, r *capability.Report) error {
	if !c.JSON {
		return r.WriteText(e.stdout)
	}
	return printJSON(e, r.Document())
}
