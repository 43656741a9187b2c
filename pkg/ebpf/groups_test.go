package ebpf

import (
	"testing"

	"pgregory.net/rapid"
)

// The table is a map, as the kernel side searches it, and its searches stay short however long it lives.
func TestGroupTableIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const bits = 6
		table := groupTable{shared: shared[runqueueQosGroup]{at: make([]runqueueQosGroup, 1<<bits)}, bits: bits}
		want := map[uint64]uint32{}
		ids := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 1<<62), 1, 24, rapid.ID).Draw(t, "ids")
		for i := range rapid.IntRange(1, 300).Draw(t, "steps") {
			id := rapid.SampledFrom(ids).Draw(t, "id")
			if rapid.Bool().Draw(t, "remove") {
				table.remove(id)
				delete(want, id)
			} else if table.put(runqueueQosGroup{Id: id, Slot: uint32(i)}) {
				want[id] = uint32(i)
			} else if len(want) < groupProbes {
				t.Fatalf("no room for a group beside %d", len(want))
			}
			for _, id := range ids {
				slot, ok := want[id]
				if at := table.find(id); (at >= 0) != ok || ok && table.at[at].Slot != slot {
					t.Fatalf("group %d: entry %d, want slot %d (%v)", id, at, slot, ok)
				}
			}
		}
		for id := range want {
			table.remove(id)
		}
		for i := range table.at {
			if table.at[i].Id == groupRemoved && len(want) == 0 && table.at[(i+1)&(len(table.at)-1)].Id == groupEmpty {
				t.Fatalf("entry %d is kept as removed though no search has to pass it", i)
			}
		}
	})
}

func TestOptionsOutOfRange(t *testing.T) {
	for name, o := range map[string]Options{
		"too few slots":    {MaxSlots: 8},
		"too many slots":   {MaxSlots: 1<<16 + 1},
		"too many victims": {MaxSlots: 16, MaxVictims: 17},
		"negative victims": {MaxVictims: -1},
		"negative events":  {EventBytes: -1},
		"negative wait":    {WalkThreshold: -1},
		"negative gap":     {EventGap: -1},
	} {
		if err := o.setDefaults(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	var o Options
	if err := o.setDefaults(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
}
