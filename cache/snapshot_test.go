package cache

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSnapshot(t *testing.T) {
	for text, ok := range map[string]bool{
		"1:1:": true, "10:20:10,14,19": true, "18446744073709551614:18446744073709551615:": true,
		"": false, "1:2": false, "2:1:": false, "1:3:3": false, "1:3:0": false, "5:9:7,6": false, "5:9:7,7": false, "5:9:": true, "-": false, "a:b:": false, "1:2:,": false,
	} {
		if _, err := parseSnapshot(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The model: transactions begin, and end in any order. A snapshot shows those that have
// ended. One contains another when it shows all that the other shows; that it does is
// never wrong, and it is found whenever it is taken later.
func TestSnapshotContainsProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		next := uint64(100)
		open := map[uint64]bool{}
		ended := map[uint64]bool{}
		type taken struct {
			s     snapshot
			ended map[uint64]bool
		}
		var all []taken
		take := func() {
			var xips []string
			xmin := next
			for x := uint64(100); x < next; x++ {
				if open[x] {
					xmin = min(xmin, x)
					xips = append(xips, fmt.Sprint(x))
				}
			}
			s, err := parseSnapshot(fmt.Sprintf("%d:%d:%s", xmin, next, strings.Join(xips, ",")))
			if err != nil {
				rt.Fatal(err)
			}
			shown := map[uint64]bool{}
			for x := range ended {
				shown[x] = true
			}
			all = append(all, taken{s, shown})
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"begin", "end", "take"}).Draw(rt, "step") {
			case "begin":
				open[next] = true
				next++
			case "end":
				for x := range open {
					delete(open, x)
					ended[x] = true
					break
				}
			case "take":
				take()
			}
		}
		take()
		for i := range all {
			for x := uint64(90); x < next+5; x++ {
				if want := x < 100 || all[i].ended[x]; all[i].s.shows(x) != want {
					rt.Fatalf("%+v shows %d: %v", all[i].s, x, !want)
				}
			}
			for j := range all {
				got := all[i].s.contains(&all[j].s)
				if i >= j && !got {
					rt.Fatalf("%+v is later than %+v and does not contain it", all[i].s, all[j].s)
				}
				for x := range all[j].ended {
					if got && !all[i].ended[x] {
						rt.Fatalf("%+v contains %+v, which shows %d", all[i].s, all[j].s, x)
					}
				}
			}
		}
	})
}
