package protocol

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// scene is what a case works with: two readers, and ways from them to Redis that it can
// hold up. Most read the row `id` under the key of a family.
type scene struct {
	*world
	a, b         reader
	lineA, lineB *line
	id           int // a row, and keys, of the case's own
}

// TestReaders runs every case with every pair of readers.
func TestReaders(t *testing.T) {
	make1 := map[string]func(*testing.T, *world, string) reader{"go": newGoReader, "python": newPythonReader}
	for _, pair := range [][2]string{{"go", "go"}, {"go", "python"}, {"python", "go"}, {"python", "python"}} {
		t.Run(pair[0]+" and "+pair[1], func(t *testing.T) {
			w := newWorld(t)
			s := scene{world: w}
			var urlA, urlB string
			s.lineA, urlA = newLine(t, w.url)
			s.lineB, urlB = newLine(t, w.url)
			s.a, s.b = make1[pair[0]](t, w, urlA), make1[pair[1]](t, w, urlB)
			for i, c := range cases() {
				s := s
				s.id = 100 * (i + 1)
				t.Run(c.name, func(t *testing.T) {
					t.Cleanup(func() { w.publish(t, "ok", 0) })
					s.ready(t)
					c.run(t, &s)
				})
			}
		})
	}
}

type protocolCase struct {
	name string
	run  func(*testing.T, *scene)
}

// cases are all of them, as docs/protocol.md lists them.
func cases() []protocolCase {
	return []protocolCase{
		{"a miss is loaded and stored", missIsStored},
		{"a hit is served without a load", hitIsServed},
		{"entries are the same bytes for both", sameBytes},
		{"fields of later versions are passed over", laterFields},
		{"values in keys", valuesInKeys},
		{"values are rendered for the type of the column", typedValues},
		{"keys that are too long are refused", longKeys},
		{"an invalidation while loading refuses the fill", invalidatedWhileLoading},
		{"a fill that is late on its way is refused", fillArrivesLate},
		{"the lease comes before the snapshot", leaseBeforeSnapshot},
		{"another one's load is waited for", waitsForOther},
		{"a lease that has run out is another one's", leaseRunsOut},
		{"a load that fails gives the lease up", failureReleases},
		{"a loader that writes is refused", writersAreRefused},
		{"that there is no row is remembered", negative},
		{"that there is no row is not remembered where negative_ttl is 0", negativeOff},
		{"what is no entry is replaced", foreignIsReplaced},
		{"a soft mark while loading refuses the fill", softWhileLoading},
		{"stale is served while one refreshes", staleIsServed},
		{"a soft mark while refreshing refuses the fill", softWhileRefreshing},
		{"a refresh that has run out is another one's", refreshRunsOut},
		{"expired is not served", expiredIsNotServed},
		{"fail-safe: an old value when the source is down", failSafe},
		{"no fail-safe: an error when the source is down", noFailSafe},
		{"a version key that is not there is made", versionIsMade},
		{"a version that moves takes its values out of use", versionMoves},
		{"a version that moves while loading", versionMovesWhileLoading},
		{"dependents are registered before the snapshot", dependents},
		{"a token is honoured", tokens},
		{"a token is honoured while another one refreshes", tokenWhileRefreshing},
		{"what is not proved is not served", doubt},
		{"what was cached before a family was followed anew is loaded again", stampMoved},
		{"a lease from before a family was followed anew is nobody's", leaseOfBefore},
		{"a family that is not followed is read from the source", notFollowed},
		{"a family on other terms is read from the source", otherTerms},
		{"DDL that changes the text of a key leaves none of before in use", typesMove},
		{"what depends on an entity that is not followed is not stored", entityNotFollowed},
		{"what is not proved is served where the class says so", doubtServed},
		{"a value too old to be returned is loaded again", tooOldToReturn},
		{"Redis down: the source is read", redisDown},
	}
}

func (s *scene) request(family string) request {
	vars := map[string]any{"id": s.id}
	if family == "list" {
		vars["shop"] = s.id
	}
	return request{Family: family, Vars: vars, Row: s.id}
}

func (s *scene) key(family string) string { return fmt.Sprintf("%s:%d", family, s.id) }

// ready waits until both readers store what they load: what the case before has published may
// be what they know still.
func (s *scene) ready(t *testing.T) {
	t.Helper()
	probe := *s
	probe.id = s.id + 99
	probe.write(t, probe.id, "ready")
	for _, by := range []reader{s.a, s.b} {
		eventually(t, "the reader stores what it loads", func() bool {
			probe.unlink(t, probe.key("item"))
			probe.comesTo(t, by.begin(t, probe.request("item")))
			return probe.kindAt(t, probe.key("item")) == "V"
		})
	}
	probe.unlink(t, probe.key("item"))
}

// seed writes the row, and has it cached.
func (s *scene) seed(t *testing.T, family, v string) {
	t.Helper()
	s.write(t, s.id, v)
	s.a.begin(t, s.request(family)).loadsRow(t, value(v))
	s.kind(t, s.key(family), "V")
}

func missIsStored(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	before := time.Now()
	r := s.a.begin(t, s.request("item")).loads(t)
	e := s.entry(t, s.key("item"))
	if e.Magic != "cdc2" || e.Kind != "L" || e.Fields != "" || e.Fresh+e.Stale != strings.Repeat("0", 24) {
		t.Errorf("the lease is %+v", e)
	}
	if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(e.Holder) || e.Holder == nobody {
		t.Errorf("the lease's holder is %q", e.Holder)
	}
	if left := s.rdb.PTTL(t.Context(), s.key("item")).Val(); left <= 0 || left > lease {
		t.Errorf("the lease runs out in %v", left)
	}
	r.step(goRow)
	r.ends(t, value("one"))

	e = s.entry(t, s.key("item"))
	if e.Kind != "V" || e.Holder != nobody || e.Deadline != strings.Repeat("0", 12) || e.Payload != "one" {
		t.Errorf("the entry is %+v", e)
	}
	if !regexp.MustCompile(`^ [0-9a-f]{12} [0-9]+ [0-9a-f]{16} [0-9]+:[0-9]+:[0-9,]*$`).MatchString(e.Fields) {
		t.Errorf("the fields are %q", e.Fields)
	}
	ttl := hexTime(t, e.Fresh).Sub(before)
	if ttl < 8*time.Minute || ttl > 11*time.Minute || e.Stale != e.Fresh {
		t.Errorf("the entry is fresh for %v, of 10m; fresh until %s, stale until %s", ttl, e.Fresh, e.Stale)
	}
	if at := hexTime(t, e.Fields[1:13]); at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
		t.Errorf("loaded at %v", at)
	}
}

func hexTime(t *testing.T, ms string) time.Time {
	t.Helper()
	n, err := strconv.ParseInt(ms, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.UnixMilli(n)
}

func hitIsServed(t *testing.T, s *scene) {
	s.seed(t, "item", "one")
	s.write(t, s.id, "two") // and nobody invalidates
	s.a.begin(t, s.request("item")).ends(t, value("one"))
	s.b.begin(t, s.request("item")).ends(t, value("one"))
}

func sameBytes(t *testing.T, s *scene) {
	for _, v := range []string{"", "cdc1", "two\nlines\n", "Zürich 日本 \U0001F600", "\x01\x7f", strings.Repeat("long ", 20000)} {
		s.seed(t, "item", v)
		s.b.begin(t, s.request("item")).ends(t, value(v))
		if got := s.entry(t, s.key("item")).Payload; got != v {
			t.Errorf("%.50q was stored as %.50q", v, got)
		}
		s.unlink(t, s.key("item"))
	}
}

// The entry that docs/protocol.md shows, under the stamp of here, with one field more.
func laterFields(t *testing.T, s *scene) {
	raw := strings.Replace(exampleEntry(t), "\n", " later=1 2\n", 1)
	raw = raw[:57] + s.stamps.Load().Families["item"].Stamp + raw[73:]
	if err := s.rdb.Set(t.Context(), s.key("item"), raw, 0).Err(); err != nil {
		t.Fatal(err)
	}
	_, payload, _ := strings.Cut(raw, "\n")
	s.a.begin(t, s.request("item")).ends(t, value(payload))
	s.b.begin(t, s.request("item")).ends(t, value(payload))
}

func valuesInKeys(t *testing.T, s *scene) {
	for i, v := range vectors(t) {
		s.id++
		s.write(t, s.id, "x")
		family := "odd"
		if _, ok := v.value.(bool); ok {
			family = "flag" // the text of a boolean column
		}
		r := request{Family: family, Vars: map[string]any{"tenant": s.id, "value": v.value}, Row: s.id}
		first, second := s.a, s.b
		if i%2 == 1 {
			first, second = s.b, s.a
		}
		first.begin(t, r).loadsRow(t, value("x"))
		s.kind(t, fmt.Sprintf("%s:{%d}:%s", family, s.id, v.encoded), "V")
		second.begin(t, r).ends(t, value("x"))
	}
}

func invalidatedWhileLoading(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	r := s.a.begin(t, s.request("item")).loads(t)
	s.write(t, s.id, "two")
	s.unlink(t, s.key("item"))
	r.step(goRow)
	r.ends(t, value("one")) // its snapshot's, and not older than its class allows
	s.kind(t, s.key("item"), "")
	s.b.begin(t, s.request("item")).loadsRow(t, value("two"))
	s.kind(t, s.key("item"), "V")
}

func fillArrivesLate(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	held := s.lineA.hold(t, s.scripts["fill"])
	r := s.a.begin(t, s.request("item")).loads(t)
	r.step(goRow)
	held.waitFor(t)
	s.write(t, s.id, "two")
	s.unlink(t, s.key("item"))
	s.b.begin(t, s.request("item")).loadsRow(t, value("two"))
	held.release()
	r.ends(t, value("one"))
	if e := s.entry(t, s.key("item")); e.Payload != "two" {
		t.Errorf("the late fill has left %+v", e)
	}
}

// The change is committed, and its key is removed, before the lease is there. A snapshot
// taken before it would show the old row, and the lease would let it in.
func leaseBeforeSnapshot(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	held := s.lineA.hold(t, s.scripts["read"])
	r := s.a.begin(t, s.request("item"))
	held.waitFor(t)
	s.write(t, s.id, "two")
	s.unlink(t, s.key("item"))
	held.release()
	r.loadsRow(t, value("two"))
	s.b.begin(t, s.request("item")).ends(t, value("two"))
}

func waitsForOther(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	first := s.a.begin(t, s.request("item")).loads(t)
	calls := s.lineB.count(s.scripts["read"])
	second := s.b.begin(t, s.request("item"))
	eventually(t, "the second reader asks again", func() bool { return calls() >= 3 })
	first.step(goRow)
	first.ends(t, value("one"))
	second.ends(t, value("one"))
}

func leaseRunsOut(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	first := s.a.begin(t, s.request("item")).loads(t)
	if !s.rdb.PExpire(t.Context(), s.key("item"), time.Millisecond).Val() {
		t.Fatal("there is no lease")
	}
	second := s.b.begin(t, s.request("item")).loads(t)
	holder := s.entry(t, s.key("item")).Holder
	first.step(goRow)
	first.ends(t, value("one"))
	if e := s.entry(t, s.key("item")); e.Kind != "L" || e.Holder != holder {
		t.Fatalf("the first reader's fill has left %+v", e)
	}
	second.step(goRow)
	second.ends(t, value("one"))
	s.kind(t, s.key("item"), "V")
}

func failureReleases(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	r := s.a.begin(t, s.request("item")).loads(t)
	r.step(goFail)
	r.ends(t, failed)
	s.kind(t, s.key("item"), "")
	s.b.begin(t, s.request("item")).loadsRow(t, value("one"))

	// A refresh is given up, too, and the value stays.
	s.write(t, s.id+1, "one")
	s.id++
	s.seed(t, "page", "one")
	s.soften(t, s.key("page"), time.Minute)
	r = s.a.begin(t, s.request("page")).loads(t)
	r.step(goFail)
	eventually(t, "the refresh is given up", func() bool { return s.entry(t, s.key("page")).Holder == nobody })
	s.kind(t, s.key("page"), "V")
}

func writersAreRefused(t *testing.T, s *scene) {
	s.write(t, s.id, "one")
	r := s.a.begin(t, s.request("item")).loads(t)
	r.step(goWrite)
	r.ends(t, failed)
	s.kind(t, s.key("item"), "")
	r = s.a.begin(t, s.request("item")).loads(t)
	r.step(goSwallow)
	r.ends(t, value("swallowed"))
	s.kind(t, s.key("item"), "")
	s.b.begin(t, s.request("item")).loadsRow(t, value("one"))
}

func negative(t *testing.T, s *scene) {
	s.a.begin(t, s.request("item")).loadsRow(t, missing)
	s.kind(t, s.key("item"), "N")
	if left := s.rdb.PTTL(t.Context(), s.key("item")).Val(); left <= 0 || left > time.Minute {
		t.Errorf("it is remembered for %v, want at most 1m", left)
	}
	s.a.begin(t, s.request("item")).ends(t, missing)
	s.b.begin(t, s.request("item")).ends(t, missing)
	s.write(t, s.id, "one")
	s.unlink(t, s.key("item"))
	s.b.begin(t, s.request("item")).loadsRow(t, value("one"))

	// It is never served stale.
	s.id++
	s.a.begin(t, s.request("page")).loadsRow(t, missing)
	s.soften(t, s.key("page"), time.Minute)
	s.kind(t, s.key("page"), "")
}

func negativeOff(t *testing.T, s *scene) {
	s.a.begin(t, s.request("never")).loadsRow(t, missing)
	s.kind(t, s.key("never"), "")
	s.b.begin(t, s.request("never")).loadsRow(t, missing)
}

func foreignIsReplaced(t *testing.T, s *scene) {
	header := exampleEntry(t)[:73]
	for _, raw := range []string{"", "hello", "cdc2", "cdc1" + header[4:] + " x\nforeign", header, header[:4] + "X" + header[5:] + " x\nforeign"} {
		s.id++
		s.write(t, s.id, "one")
		if err := s.rdb.Set(t.Context(), s.key("item"), raw, 0).Err(); err != nil {
			t.Fatal(err)
		}
		s.a.begin(t, s.request("item")).loadsRow(t, value("one"))
		s.b.begin(t, s.request("item")).ends(t, value("one"))
	}
	s.id++
	s.write(t, s.id, "one")
	if err := s.rdb.SAdd(t.Context(), s.key("item"), "a set").Err(); err != nil {
		t.Fatal(err)
	}
	s.a.begin(t, s.request("item")).loadsRow(t, value("one"))
	s.b.begin(t, s.request("item")).ends(t, value("one"))
}
