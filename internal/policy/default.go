package policy

import (
	"time"

	"github.com/qos-agent/qos-agent/policies"
)

// Default is the policy that holds where a document says nothing. Each value's reason is in policies/default.yaml.
func Default() Policy {
	return Policy{
		APIVersion: APIVersion,
		Kind:       Kind,
		Metadata:   Metadata{Name: "default"},
		Spec: Spec{
			Mode:    Enforce,
			Classes: Classes{Presets: []string{presetOwn, presetKoordinator, presetVolcano, presetKatalyst}},
			Objectives: Objectives{
				CPUWaitP99:         Duration(2 * time.Millisecond),
				CPUWaitEvent:       Duration(4 * time.Millisecond),
				MemoryStallPercent: 10,
				IOStallPercent:     20,
				CPIRisePercent:     10,
			},
			Judge: Judge{
				Window:           Duration(time.Second),
				MinSamples:       20,
				WatchPercent:     70,
				CulpritPercent:   40,
				JointPercent:     60,
				UnknownPercent:   40,
				ThrottledPercent: 10,
				StealPercent:     5,
				CPI:              CPIJudge{Window: Duration(300 * time.Millisecond), MinBaseline: 20, MinCPUPercent: 2, MPKIRisePercent: 25},
			},
			CPU: CPU{
				Posture:     PostureIdle,
				Ladder:      []Rung{RungIdle, RungCPUs, RungQuota},
				CPUs:        CPUsRung{CutPercent: 50, Floor: 1, IdleBuffer: 1},
				Quota:       QuotaRung{Period: Duration(20 * time.Millisecond), CutPercent: 50, FloorPercent: 10, GrowPercent: 10},
				Freeze:      FreezeRung{Max: Duration(100 * time.Millisecond)},
				Cooldown:    Duration(100 * time.Millisecond),
				Hold:        Duration(3 * time.Second),
				RegrowEvery: Duration(time.Second),
				Verify: Verify{
					After:          Duration(time.Second),
					ImprovePercent: 20,
					BackoffMin:     Duration(5 * time.Second),
					BackoffMax:     Duration(5 * time.Minute),
				},
				Burst: Burst{Percent: 50},
			},
			RDT: RDT{
				Cache: CacheControl{Enabled: true, FloorWays: 1, CutPercent: 50, OnlineOwn: true},
				Bandwidth: BandwidthControl{
					Enabled: true, FloorPercent: 10, CutPercent: 50, GrowPercent: 10, StressedPercent: 75, AbundantPercent: 60,
				},
				Cooldown:    Duration(400 * time.Millisecond),
				Hold:        Duration(3 * time.Second),
				RegrowEvery: Duration(time.Second),
				Verify: Verify{
					After:          Duration(time.Second),
					ImprovePercent: 20,
					BackoffMin:     Duration(5 * time.Second),
					BackoffMax:     Duration(5 * time.Minute),
				},
			},
			Safety: Safety{
				StaleAfter:    Duration(2 * time.Second),
				ReleaseAfter:  Duration(30 * time.Second),
				ExternalEdits: Reapply,
			},
		},
	}
}

// DefaultYAML is the default policy as YAML with comments.
func DefaultYAML() string { return policies.Default }
