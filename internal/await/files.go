package await

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// notFollowed says which families of the file the daemon does not follow as the file maps
// them: mapped is mapping.Plan.Maps of it. It waits for them, since a reload may be under
// way. A family that only the daemon has is no matter.
func notFollowed(found sink.Settling, mapped map[string]string) (out []string) {
	if found.Families == nil {
		return []string{"no family is followed yet: the daemon waits for transactions that were open when it attached (cdc-invalidator status), or its stamps are gone from Redis"}
	}
	var absent, other []string
	for _, name := range slices.Sorted(maps.Keys(mapped)) {
		switch stamp, known := found.Families.Families[name]; {
		case !known:
			absent = append(absent, name)
		case stamp.Maps() != mapped[name]:
			other = append(other, name)
		}
	}
	if len(absent) > 0 {
		out = append(out, "the daemon does not follow the families "+strings.Join(absent, ", ")+
			": reload it (SIGHUP) with this file; if it has it, it waits for transactions that were open then (condition stamps)")
	}
	if len(other) > 0 {
		out = append(out, "the daemon maps the families "+strings.Join(other, ", ")+
			" otherwise than this file, so it has another one: reload it (SIGHUP) with this one, or name the file that it has")
	}
	return out
}

// checkSlot refuses a slot of another database: its daemon follows other tables, however
// far it is.
func checkSlot(ctx context.Context, file *mapping.File) error {
	conn, err := replication.ConnectControl(ctx, file.Source.URL.Reveal(), "wait")
	if err != nil {
		return err
	}
	defer replication.CloseControl(ctx, conn)
	_, err = replication.CheckSlotDatabase(ctx, conn, file.Source.Slot.Name)
	return err
}
