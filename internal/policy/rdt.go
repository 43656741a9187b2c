package policy

// RDT tunes what is done about the last-level cache and the memory bandwidth, by hardware that resctrl controls (Intel RDT, AMD QoS). A
// node that lacks a part of it does without; qos-agent doctor says what is lost.
type RDT struct {
	// Mount lets the agent mount resctrl at /sys/fs/resctrl where it is not mounted, which turns the feature on for the machine. What
	// the agent mounted it unmounts when it stops. Otherwise it uses resctrl only where somebody else has mounted it.
	Mount bool `yaml:"mount" json:"mount"`
	// Cache is the controller of cache ways.
	Cache CacheControl `yaml:"cache" json:"cache"`
	// Bandwidth is the controller of memory bandwidth.
	Bandwidth BandwidthControl `yaml:"bandwidth" json:"bandwidth"`

	// Cooldown is the least time between two cuts of one pod. A cut of ways shows its effect when the victim has filled the
	// freed ways again, so this is longer than for CPUs.
	Cooldown Duration `yaml:"cooldown" json:"cooldown" want:"10ms..60s"`
	// Hold is how long every victim must be well before anything is given back.
	Hold Duration `yaml:"hold" json:"hold" want:"100ms..1h"`
	// RegrowEvery is the time between two steps back.
	RegrowEvery Duration `yaml:"regrowEvery" json:"regrowEvery" want:"100ms..1h"`
	// Verify checks each blame by its effect: its improvePercent is of the victim's CPI in excess of the baseline.
	Verify Verify `yaml:"verify" json:"verify"`
}

// CacheControl takes ways of the last-level cache (CAT) from offline pods that evict what online pods need. ways, onlineWays and
// offlineWays divide the cache once for all, whether or not the controller is enabled: as a list ("0-3,8") or a mask ("0x10f"), an empty
// text for what is not set. Where they do not fit the machine, none of them holds, no pod is limited to ways, and the log says why.
type CacheControl struct {
	// Enabled turns the controller on.
	Enabled bool `yaml:"enabled" json:"enabled"`
	// Ways are all that classes of the agent may fill; empty: all that there are. Leave out those that something else on the node
	// hands out or relies on (pqos, a kubelet plug-in, DPDK, a manager of virtual machines).
	Ways Ways `yaml:"ways,omitempty" json:"ways,omitempty" example:"a list of ways (0-3,8) or a mask (0x10f), of ways 0 to 31"`
	// OnlineWays are closed to offline pods, always. They lie at one end of ways, except where masks may have gaps.
	OnlineWays Ways `yaml:"onlineWays,omitempty" json:"onlineWays,omitempty" example:"a list of ways (0-3,8) or a mask (0x10f), of ways 0 to 31"`
	// OfflineWays are closed to online pods, always, so no offline pod is held to fewer. They lie at one end of ways, except where masks
	// may have gaps, and take a class of service for the online pods.
	OfflineWays Ways `yaml:"offlineWays,omitempty" json:"offlineWays,omitempty" example:"a list of ways (0-3,8) or a mask (0x10f), of ways 0 to 31"`
	// FloorWays is the least number of ways that an offline pod keeps; the machine may want more.
	FloorWays int `yaml:"floorWays" json:"floorWays" want:"1..32"`
	// CutPercent of a culprit's ways go at one cut; more if it is known how many the victim needs.
	CutPercent int `yaml:"cutPercent" json:"cutPercent" want:"1..100"`
	// OnlineOwn gives an online pod ways of its own when those who hurt it have as few as can be, that has not been enough, and it is
	// known how much cache it used while it was well.
	OnlineOwn bool `yaml:"onlineOwn" json:"onlineOwn"`
}

// BandwidthControl takes memory bandwidth (MBA) from offline pods.
type BandwidthControl struct {
	// Enabled turns the controller on.
	Enabled bool `yaml:"enabled" json:"enabled"`
	// FloorPercent is the least limit that an offline pod gets; the machine may want more. Below it the CPU controller takes cores
	// instead.
	FloorPercent int `yaml:"floorPercent" json:"floorPercent" want:"1..100"`
	// CutPercent of a culprit's limit go at one cut.
	CutPercent int `yaml:"cutPercent" json:"cutPercent" want:"1..100"`
	// GrowPercent of the bandwidth is given back at one step.
	GrowPercent int `yaml:"growPercent" json:"growPercent" want:"1..100"`
	// TotalMBps is what one socket's memory can move, in MB/s (10^6 bytes), as a benchmark such as STREAM shows it. 0: not known; the
	// most that was seen so far stands in.
	TotalMBps int `yaml:"totalMBps" json:"totalMBps" want:"0..10000000"`
	// StressedPercent of a socket's bandwidth is where its memory becomes slow for everybody.
	StressedPercent int `yaml:"stressedPercent" json:"stressedPercent" want:"1..100"`
	// AbundantPercent of a socket's bandwidth must not be in use for anything to be given back. Below stressedPercent.
	AbundantPercent int `yaml:"abundantPercent" json:"abundantPercent" want:"1..100"`
}

// CPIJudge tunes verdicts on the last-level cache and the memory bandwidth: a container's cycles per instruction (CPI) and LLC misses
// per thousand instructions (MPKI) are held against a baseline that is learned for that container name of that workload, in bins of
// its own CPU use.
type CPIJudge struct {
	// Window is the time over which CPI and MPKI are judged.
	Window Duration `yaml:"window" json:"window" want:"100ms..60s"`
	// MinBaseline is how many windows a bin of the baseline must hold before anybody is blamed.
	MinBaseline int `yaml:"minBaseline" json:"minBaseline" want:"3..10000"`
	// MinCPUPercent of one CPU is the use below which a container's CPI is not judged: it says little then.
	MinCPUPercent float64 `yaml:"minCPUPercent" json:"minCPUPercent" want:"0..100"`
	// MPKIRisePercent above the baseline is where MPKI is over its fence, so that a risen CPI is the cache's doing. Noise of the
	// baseline widens the fence further.
	MPKIRisePercent float64 `yaml:"mpkiRisePercent" json:"mpkiRisePercent" want:"1..1000"`
}
