package integration

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"syscall"
	"testing"
)

const topField = "ffffffffffffffff" // the highest that a field of 16 digits can be

// spoil writes a field of the control hash as a hand would; nil removes it.
func (w *world) spoil(field string, value *string) {
	w.t.Helper()
	key := "inv:source:{" + w.slot + "}"
	err := w.rdb.HDel(w.t.Context(), key, field).Err()
	if value != nil {
		err = w.rdb.HSet(w.t.Context(), key, field, *value).Err()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// spoilt are the ways in which a field can be wrong.
func spoilt(before string) map[string]*string {
	to := func(s string) *string { return &s }
	ways := map[string]*string{"deleted": nil, "empty": to(""), "junk": to("junk")}
	if n, err := strconv.ParseUint(before, 16, 64); err == nil && (len(before) == 8 || len(before) == 16) {
		hex := func(n uint64) *string { return to(fmt.Sprintf("%0*x", len(before), n)) }
		ways["zero"], ways["top"], ways["too high"] = hex(0), to(topField[:len(before)]), hex(n+1<<20)
		if n > 0 {
			ways["too low"] = hex(n - 1)
		}
	} else {
		ways["changed"] = to(before + "x")
	}
	for name, way := range ways {
		if way != nil && *way == before || way == nil && before == "" {
			delete(ways, name)
		}
	}
	return ways
}

// Whatever somebody does to whatever field of the control hash: it is written again, or is a
// gap, and the daemon goes on; it does not stand still under a state that says ok.
func TestDamagedControlHash(t *testing.T) {
	t.Parallel()
	w, _, _ := privateWorld(t, 200, nil)
	p, address := w.startHTTP()
	changes := []string{"applied", "end", "commit_time", "txn", "fresh_as_of", "sent", "settled", "updated",
		"generation", "writer", "state_revision", "state_since"} // by themselves, or where a session begins anew
	for _, field := range slices.Sorted(maps.Keys(w.control())) {
		ways := spoilt(w.control()[field])
		for _, way := range slices.Sorted(maps.Keys(ways)) {
			w.settle(p)
			before, value := w.control()[field], ways[way]
			w.spoil(field, value)
			w.eventually(field+" "+way+" is written again", func() bool {
				if p.ended() {
					t.Fatalf("the daemon ended\n%s", p.log.String())
				}
				h := w.control()
				now, there := h[field]
				switch {
				case h["state"] != "ok" || !there && before != "" || value != nil && now == *value:
					return false
				case slices.Contains(changes, field):
					return len(now) == len(before) && (len(now) != 16 || now < "fff")
				}
				return now == before
			})
			fresh := w.control()["fresh_as_of"]
			w.eventually("freshness moves", func() bool { return w.control()["fresh_as_of"] > fresh })
			w.cacheRows(0, 1)
			w.update(0, 1)
			w.settle(p)
			w.wantGone(0, 1)
		}
	}
	w.eventually("all is well", func() bool { code, _ := w.answered(address, "/healthz"); return code == 200 })
	// What looks like another daemon is given way to, and is not there.
	w.spoil("writer", &[]string{"0123456789abcdef"}[0])
	w.spoil("state_revision", &[]string{"0000000000ffffff"}[0])
	w.update(0, 10)
	w.eventually("it has the hash again", func() bool { return w.control()["writer"] != "0123456789abcdef" })
	w.settle(p)
	p.stop()
}

// The same found at a start, where nobody knows what it said.
func TestControlHashDamagedBeforeTheStart(t *testing.T) {
	t.Parallel()
	w, _, _ := privateWorld(t, 20, nil)
	w.start().stop()
	for _, field := range slices.Sorted(maps.Keys(w.control())) {
		for _, way := range []string{"junk", "top"} {
			value := spoilt(w.control()[field])[way]
			if value == nil {
				continue
			}
			w.spoil(field, value)
			w.cacheRows(0, 10)
			w.update(0, 10) // nobody applies it now
			p := w.start()
			w.wantGone(0, 10)
			// Without a session that writes it, it says nothing that is believed.
			if now := w.control()[field]; now == *value && field != "region" && field != "format" {
				w.eventually(field+" "+way+" is written again", func() bool { return w.control()[field] != *value })
			}
			p.stop()
		}
	}
}

// What is settled is not believed where it cannot be: beyond what is applied, or beyond the end
// of the source's log.
func TestWaitDoesNotBelieveADamagedHash(t *testing.T) {
	t.Parallel()
	w, _, _ := privateWorld(t, 20, nil)
	p := w.start()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.update(0, 10)
	high := "ffffffffffffff00"
	for _, field := range []string{"settled", "end"} {
		w.spoil(field, &high)
		w.wait(timedOut, "--timeout", "1s")
	}
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.eventually("it is written again", func() bool { h := w.control(); return h["settled"] < high && h["end"] < high })
	w.wait(0)
	p.stop()
}
