package sink

import (
	"slices"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// field is one of the control hash.
type field struct {
	name string
	text func(c *Control) string
	kind fieldKind
}

// fieldKind says what a difference means between the field and what this process knows of it.
type fieldKind uint8

const (
	// written: nobody else writes it, so it was spoilt.
	written fieldKind = iota
	// advancing: a position; the same where it is too high. One that is too low says that the server's data
	// went back, which is not mended but replayed: the checkpoint finds it.
	advancing
	// stamped: each write has its own, and none is remembered.
	stamped
)

// controlFields is the one list of what is in the hash, but for the marks of what is held.
func controlFields() []field {
	return []field{
		{"format", func(*Control) string { return "1" }, written},
		{"generation", func(c *Control) string { return hex32(c.Generation) }, written},
		{"writer", func(c *Control) string { return c.writer }, written},
		{"system_id", func(c *Control) string { return c.Source.SystemID }, written},
		{"timeline", func(c *Control) string { return hex32(c.Source.Timeline) }, written},
		{"epoch", func(c *Control) string { return c.Source.Epoch }, written},
		{"region", func(c *Control) string { return c.Region }, written},
		{"applied", func(c *Control) string { return c.Applied.Hex() }, advancing},
		{"end", func(c *Control) string { return c.End.Hex() }, advancing},
		{"commit_time", func(c *Control) string { return hexTime(c.CommitTime) }, written},
		{"txn", func(c *Control) string { return txnField(c.Applied, c.XID) }, written},
		{"fresh_as_of", func(c *Control) string { return hexTime(c.FreshAsOf) }, written},
		{"sent", func(c *Control) string { return c.Sent.Hex() }, advancing},
		{"settled", func(c *Control) string { return c.Settled.Hex() }, written},
		{"nodes", func(c *Control) string { return c.nodes }, written},
		{"state", func(c *Control) string { return string(c.State) }, written},
		{"reason", func(c *Control) string { return c.Reason }, written},
		{"state_since", func(c *Control) string { return hexTime(c.StateSince) }, written},
		{"state_revision", func(c *Control) string { return hex64(c.revision) }, written},
		{"stamps", func(c *Control) string { return c.Stamps }, written},
		{"purging", func(c *Control) string { return strings.Join(c.Purging, " ") }, written},
		{"updated", func(c *Control) string { return hexTime(c.Updated) }, stamped},
	}
}

// fields lists the whole hash for install.lua.
func (c *Control) fields() []any {
	var list []any
	for _, f := range controlFields() {
		list = append(list, f.name, f.text(c))
	}
	for class, mark := range c.held {
		list = append(list, heldField+class, mark)
	}
	return list
}

// difference is a field that is not what this process knows of it.
type difference struct{ found, known string }

// differences compares a hash with what is known of it, and of what may have been sent. back
// says that a position is lower.
func (c *Control) differences(hash map[string]string, asked lsn.LSN) (list map[string]difference, back bool) {
	list = map[string]difference{}
	for _, f := range controlFields() {
		d := difference{hash[f.name], f.text(c)}
		if d.found == d.known || f.kind == stamped || d.found == "" && strings.Trim(d.known, "0") == "" { // what is not there says no more
			continue
		}
		if f.kind == advancing && len(d.found) == len(d.known) && d.found < d.known &&
			(f.name != "end" || hash["applied"] == c.Applied.Hex()) { // else the script could not move it on
			back = true
			continue
		}
		if f.name == "sent" && len(d.found) == len(d.known) && d.found <= asked.Hex() {
			continue // a batch whose reply was lost, and which may have been applied
		}
		list[f.name] = d
	}
	for name, mark := range hash {
		if class, ok := strings.CutPrefix(name, heldField); ok && c.held[class] != mark {
			list[name] = difference{mark, c.held[class]}
		}
	}
	for class, mark := range c.held {
		if name := heldField + class; hash[name] != mark {
			list[name] = difference{hash[name], mark}
		}
	}
	return list, back
}

// standing are the fields that differ now as they did at the look before. A command that is
// under way, or whose reply was lost and which is sent again, makes a difference too, but not
// for that long.
func standing(before, now map[string]difference) []string {
	var names []string
	for name, d := range now {
		b, ok := before[name]
		// What is known moves on under load, and a field that is written then does too.
		if ok && b.found == d.found {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
