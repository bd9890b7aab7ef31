package tap

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// view makes lines of invalidations.
//
// A masked value is a star and eight digits. The digits are the same for the same
// value, within one run: without them every line of a family would look alike, and
// whether an update moved a key, or the same row changes again and again, is what one
// taps for. They are made with a key that is drawn at the start and kept nowhere, since
// ids and addresses are few enough to be found by trying.
type view struct {
	json       bool
	showValues bool
	key        [32]byte

	table, family int // widths of columns
}

func newView(o Options) view {
	v := view{json: o.JSON, showValues: o.ShowValues}
	_, _ = rand.Read(v.key[:]) // never fails: the runtime would sooner end the process
	for _, u := range o.Plan.Tables() {
		v.table = max(v.table, len(u.Schema)+1+len(u.Table))
	}
	for _, f := range o.Plan.Families() {
		v.family = max(v.family, len(f.Name))
	}
	return v
}

// invalidation is a line of JSON.
type invalidation struct {
	Type     string    `json:"type"`     // "invalidation"
	Time     time.Time `json:"time"`     // of the commit, by the server's clock
	Position string    `json:"position"` // commit LSN
	XID      uint32    `json:"xid,omitempty"`
	Table    string    `json:"table"`  // schema.table, or the prefix of a message
	Action   string    `json:"action"` // insert, update, delete, truncate, ddl or message
	Op       string    `json:"op"`     // delete, soft, advance, dependents, purge or lookup
	Family   string    `json:"family"`
	Class    string    `json:"class"`
	Tenant   string    `json:"tenant,omitempty"`
	Key      string    `json:"key,omitempty"`      // of delete, soft and advance; of dependents the name of the entity
	SQL      string    `json:"sql,omitempty"`      // of lookup
	Params   []*string `json:"params,omitempty"`   // of SQL; null is NULL
	Resolved bool      `json:"resolved,omitempty"` // comes of the lookup before it
	Widened  []string  `json:"widened,omitempty"`  // of purge: what was not known
	Masked   bool      `json:"masked"`
}

// leftOut is what stands in JSON where lines are missing.
type leftOut struct {
	Type  string `json:"type"` // "left_out"
	Lines int64  `json:"lines"`
}

func (v *view) line(e event, inv *mapping.Invalidation) []byte {
	l := invalidation{Type: "invalidation", Time: e.Time.UTC(), Position: e.Position.String(), XID: e.XID, Table: e.Table, Action: e.Action,
		Op: inv.Op.String(), Family: inv.Family.Name, Class: inv.Family.Class.Name, Resolved: e.Resolved, Masked: !v.showValues}
	if inv.Tenant != nil {
		l.Tenant = v.value(inv.Tenant)
	}
	switch inv.Op {
	case mapping.OpLookup:
		l.SQL = strings.Join(strings.Fields(inv.Lookup.SQL()), " ")
		for _, p := range inv.Lookup.Params() {
			if p == nil {
				l.Params = append(l.Params, nil)
				continue
			}
			s := v.value(mapping.AppendEncoded(nil, p))
			l.Params = append(l.Params, &s)
		}
	case mapping.OpPurge:
		l.Widened = e.widened
	default:
		l.Key = inv.Family.MaskKey(inv.Key, v.value)
	}
	if v.json {
		return jsonLine(l)
	}
	return v.text(l)
}

// value masks one, which is given as it stands in keys.
func (v *view) value(encoded []byte) string {
	if v.showValues {
		return string(encoded)
	}
	mac := hmac.New(sha256.New, v.key[:])
	mac.Write(encoded)
	return "*" + hex.EncodeToString(mac.Sum(nil)[:4])
}

const timeFormat = "2006-01-02T15:04:05.000Z"

func (v *view) text(l invalidation) []byte {
	what := l.Key
	switch l.Op {
	case "purge":
		what = "(the whole family)"
		if l.Tenant != "" {
			what = "(all of tenant " + l.Tenant + ")"
		}
		if len(l.Widened) > 0 {
			what += " widened: " + strings.Join(l.Widened, ", ")
		}
	case "lookup":
		var params []string
		for i, p := range l.Params {
			value := "NULL"
			if p != nil {
				value = *p
			}
			params = append(params, fmt.Sprintf("$%d = %s", i+1, value))
		}
		what = "for_each " + strings.Join(params, ", ") + ": " + l.SQL
	}
	if l.Resolved {
		what += " (for_each)"
	}
	return fmt.Appendf(nil, "%s  %-10s  %-8s  %-*s  %-10s  %-*s  %s\n",
		l.Time.Format(timeFormat), l.Position, l.Action, v.table, l.Table, l.Op, v.family, l.Family, what)
}

// leftOut is the line that stands for others.
func (v *view) leftOut(n int64) []byte {
	if v.json {
		return jsonLine(leftOut{Type: "left_out", Lines: n})
	}
	return fmt.Appendf(nil, "... %d left out here (--max-rate, or the reader was too slow)\n", n)
}

func jsonLine(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return nil // cannot happen for these types
	}
	return append(b, '\n')
}

// Summary is what a run has seen.
type Summary struct {
	Type          string           `json:"type"` // "summary"
	Seconds       float64          `json:"seconds"`
	Transactions  int64            `json:"transactions"`
	Rows          int64            `json:"rows"`          // mapped or not
	Invalidations int64            `json:"invalidations"` // that the filters let through
	Shown         int64            `json:"shown"`
	LeftOut       int64            `json:"left_out"`
	Ops           map[string]int64 `json:"ops"`     // invalidations by op
	Widened       map[string]int64 `json:"widened"` // times that a value was not known, by reason; before the filters
}

func newSummary() Summary {
	return Summary{Type: "summary", Ops: map[string]int64{}, Widened: map[string]int64{}}
}

func (s Summary) String() string {
	return fmt.Sprintf("%d transactions, %d rows, %d invalidations in %.1f s: %d shown, %d left out",
		s.Transactions, s.Rows, s.Invalidations, s.Seconds, s.Shown, s.LeftOut)
}
