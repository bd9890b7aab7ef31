package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// stampSet is what the daemon's stamps mean to this process. It is part of a look at the
// control hash, and like that is known before anything is read: an entry is believed only
// under the stamp that was known then, and a lease is taken under it.
type stampSet struct {
	revision string
	families []familyStamp // by ID; none of one that is not followed, or on other terms than here
	entities map[string]mapping.EntityTerms
}

// familyStamp is the family's stamp, and the types of key columns under which it holds.
type familyStamp struct{ stamp, types string }

// stampReader reads the stamps when the control hash names others than before.
type stampReader struct {
	rdb  redis.UniversalClient
	key  string
	plan *mapping.Plan
	log  *slog.Logger
	// types are those that keys are made with. When a stamp moves, they are read again before the next one is.
	types *keyTypes

	mu       sync.Mutex
	last     *stampSet
	missing  []string       // families that the last ones lack
	since    time.Time      // when they were read; zero once it has been logged
	compared *keytype.Types // with the last ones
	untyped  time.Time      // since when they differ; zero once it has been logged, and where they do not
}

// missingFor is how long a family may be missing before that is logged: while the daemon
// begins to follow one, it is.
const missingFor = 5 * time.Second

var errNoStamps = errors.New("the stamps that the control hash names are not there: they were evicted, and the daemon writes them again")

// at gives the stamps of the revision; nil where there are none at all.
func (r *stampReader) at(ctx context.Context, revision string) (*stampSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if revision == "" {
		r.last = nil
		return nil, nil
	}
	if r.last == nil || r.last.revision != revision {
		text, err := r.rdb.Get(ctx, r.key).Result()
		if errors.Is(err, redis.Nil) {
			return nil, errNoStamps
		}
		if err != nil {
			return nil, fmt.Errorf("read the stamps: %w", err)
		}
		stamps, err := mapping.ParseStamps(text)
		if err != nil {
			return nil, err
		}
		if stamps.Revision != revision { // published since the hash was read: the next look has both
			return nil, errNoStamps
		}
		r.take(stamps)
	}
	if !r.since.IsZero() && time.Since(r.since) >= missingFor {
		r.since = time.Time{}
		r.log.Warn("the daemon does not follow families that this process's mappings have: their reads go to the source; run both with one file",
			"families", some(r.missing))
	}
	r.compare()
	return r.last, nil
}

// compare tells of types that the daemon has others of for long. While one of them does not know of DDL yet,
// they differ.
func (r *stampReader) compare() {
	known := r.types.known.Load()
	if known == nil {
		return
	}
	if known != r.compared {
		r.compared = known
		if len(r.differ(known)) == 0 {
			r.untyped = time.Time{}
		} else if r.untyped.IsZero() {
			r.untyped = time.Now()
		}
	}
	if !r.untyped.IsZero() && time.Since(r.untyped) >= missingFor {
		r.untyped = time.Time{}
		r.log.Warn("the daemon finds other types of key columns than this process: reads of these families go to the source; both have to ask one database, and for_each queries to mean the same to both roles (search_path)",
			"differ", some(r.differ(known)))
	}
}

func (r *stampReader) differ(known *keytype.Types) (list []string) {
	mine := known.KeyTypes()
	for _, f := range r.plan.Families() {
		if s := r.last.families[f.ID]; s.stamp != "" && s.types != mine.Families[f.Name].Types {
			list = append(list, fmt.Sprintf("%s: %q here and %q for the daemon", f.Name, mine.Families[f.Name].Types, s.types))
		}
	}
	return list
}

// take compares the daemon's terms with those of this process.
func (r *stampReader) take(stamps *mapping.Stamps) {
	families := r.plan.Families()
	set := &stampSet{revision: stamps.Revision, families: make([]familyStamp, len(families)), entities: stamps.Entities}
	var missing, differ []string
	for _, f := range families {
		theirs, ok := stamps.Families[f.Name]
		if !ok {
			missing = append(missing, f.Name)
			continue
		}
		mine := f.Terms(mapping.KeyTypes{})
		mine.Types = theirs.Types // what a key is made with is compared when it is made
		if what := mine.Differences(theirs.Terms); what != "" {
			differ = append(differ, f.Name+": "+what)
			continue
		}
		set.families[f.ID] = familyStamp{theirs.Stamp, theirs.Types}
	}
	for kind, mine := range r.plan.EntityTerms(mapping.KeyTypes{}) {
		if theirs, ok := stamps.Entities[kind]; !ok || theirs.Variables != mine.Variables {
			differ = append(differ, "the entity "+kind+", so that what depends on it is not stored")
		}
	}
	slices.Sort(differ)
	if len(differ) > 0 {
		r.log.Warn("the daemon runs with other mappings than this process: reads of the families that differ go to the source; run both with one file",
			"differ", some(differ))
	}
	if !slices.Equal(missing, r.missing) {
		r.missing, r.since = missing, time.Time{}
		if len(missing) > 0 {
			r.since = time.Now()
		}
	}
	if r.last == nil || !slices.Equal(r.last.families, set.families) || !maps.Equal(r.last.entities, set.entities) {
		r.types.outdate() // before anybody knows of the new ones
	}
	r.last, r.compared = set, nil
}

// some of a list, for the log.
func some(list []string) string {
	const most = 5
	if len(list) <= most {
		return strings.Join(list, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(list[:most], "; "), len(list)-most)
}

// stamp is what entries of the family have to have; "" when none is known.
func (s *controlState) stamp(f *family) string {
	if s == nil || s.stamps == nil || s.void() {
		return ""
	}
	return s.stamps.families[f.ID].stamp
}

// agrees says whether the daemon makes the family's keys as they are made here. Where it has no stamp, there is nothing to
// agree on.
func (s *controlState) agrees(f *family, r *rendering) bool {
	return s == nil || s.stamps == nil || s.stamps.families[f.ID].stamp == "" || s.stamps.families[f.ID].types == r.terms
}

// follows says whether the daemon deals with what depends on the entity.
func (s *controlState) follows(e *mapping.Entity) bool {
	if s == nil || s.stamps == nil {
		return false
	}
	theirs, ok := s.stamps.entities[e.Kind]
	return ok && theirs.Variables == e.Vars
}

// names says whether the daemon names the entities of a kind as it is done here with these types.
func (s *controlState) names(e *mapping.Entity, types *keytype.Types) bool {
	return s.follows(e) && s.stamps.entities[e.Kind] == e.Terms(types.KeyTypes())
}

// believes says whether an entry with the stamp may be returned, after the look known. Where
// the class serves what is in doubt, it is asked for only while one is known.
func (f *family) believes(known *controlState, stamp string) bool {
	want := known.stamp(f)
	return stamp == want || want == "" && f.Class.OnDoubt == onDoubtServe
}
