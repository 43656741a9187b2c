// Package grafana describes the dashboards. What Grafana loads is generated into the chart (go generate ./... in deploy/): four
// boards for four people. Every query is run by the tests against a real Prometheus that scrapes a real agent.
//
// Series carry the label `node` (the chart's PodMonitor adds it).
package grafana

import (
	"encoding/json"
	"fmt"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

//go:generate go run -mod=mod ./mkdashboards ../helm/qos-agent/files/dashboards

// Board is a dashboard.
type Board struct {
	UID, Title, About string
	Variables         []Variable
	Rows              []Row
}

// Variable is a value that the reader chooses, from the label of a selector.
type Variable struct{ Name, Label, From string }

// Row is a titled part of a board.
type Row struct {
	Title  string
	Panels []Panel
}

// Kind is how a panel shows its queries.
type Kind int

const (
	Lines Kind = iota // over time
	Stack             // over time, adding up
	Number
	Bars // what is now, the largest first
	Heat // a histogram over time
)

// Panel is one picture.
type Panel struct {
	Title, About string
	Kind         Kind
	Unit         string // Grafana's name: "s", "percentunit", "short"
	Width        uint32 // of 24; 0 is 12
	Queries      []Query
}

// Query is PromQL and how its series are called.
type Query struct {
	Expr, Legend string
	// Needs names what only some machines have: "perf", "resctrl". There the query has an answer, elsewhere it has none.
	Needs string
}

// JSON is the board as Grafana loads it.
func (b *Board) JSON() ([]byte, error) {
	d := dashboard.NewDashboardBuilder(b.Title).Uid(b.UID).Description(b.About).Tags([]string{"qos-agent"}).
		Refresh("10s").Time("now-30m", "now").Tooltip(dashboard.DashboardCursorSyncCrosshair).
		Link(dashboard.NewDashboardLinkBuilder("qos-agent").Type(dashboard.DashboardLinkTypeDashboards).Tags([]string{"qos-agent"}).AsDropdown(true).IncludeVars(true).KeepTime(true)).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Prometheus").Type("prometheus"))
	for _, v := range b.Variables {
		d.WithVariable(dashboard.NewQueryVariableBuilder(v.Name).Label(v.Label).Datasource(source()).
			Query(dashboard.StringOrMap{String: cog.ToPtr(fmt.Sprintf("label_values(%s, %s)", v.From, v.Name))}).
			Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortAlphabeticalAsc))
	}
	for _, r := range b.Rows {
		d.WithRow(dashboard.NewRowBuilder(r.Title))
		for i := range r.Panels {
			d.WithPanel(r.Panels[i].build())
		}
	}
	built, err := d.Build()
	if err != nil {
		return nil, fmt.Errorf("dashboard %s: %w", b.UID, err)
	}
	text, err := json.MarshalIndent(built, "", " ")
	return append(text, '\n'), err
}

func source() common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}
}

func (p *Panel) build() cog.Builder[dashboard.Panel] {
	width, height := p.Width, uint32(8)
	if width == 0 {
		width = 12
	}
	var targets []cog.Builder[variants.Dataquery]
	for i, q := range p.Queries {
		t := prometheus.NewDataqueryBuilder().Expr(q.Expr).LegendFormat(q.Legend).Datasource(source()).RefId(string(rune('A' + i)))
		switch p.Kind {
		case Number, Bars:
			t.Instant()
		case Heat:
			t.Format(prometheus.PromQueryFormatHeatmap)
		}
		targets = append(targets, t)
	}
	switch p.Kind {
	case Number:
		return stat.NewPanelBuilder().Title(p.Title).Description(p.About).Unit(p.Unit).Span(width).Height(4).Datasource(source()).
			GraphMode(common.BigValueGraphModeNone).Targets(targets)
	case Bars:
		return bargauge.NewPanelBuilder().Title(p.Title).Description(p.About).Unit(p.Unit).Span(width).Height(height).Datasource(source()).
			Orientation(common.VizOrientationHorizontal).DisplayMode(common.BarGaugeDisplayModeBasic).Targets(targets)
	case Heat:
		return heatmap.NewPanelBuilder().Title(p.Title).Description(p.About).Span(width).Height(height).Datasource(source()).
			YAxis(heatmap.NewYAxisConfigBuilder().Unit(p.Unit)).Targets(targets)
	}
	lines := timeseries.NewPanelBuilder().Title(p.Title).Description(p.About).Unit(p.Unit).Span(width).Height(height).Datasource(source()).
		Min(0).ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeTable).Placement(common.LegendPlacementBottom).ShowLegend(true).Calcs([]string{"lastNotNull", "max"})).
		Targets(targets)
	if p.Kind == Stack {
		lines.FillOpacity(30).Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal))
	}
	return lines
}
