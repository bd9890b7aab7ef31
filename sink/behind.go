package sink

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// PurgeBehind removes everything of the families, at redis.scan_rate, while batches are applied:
// for memory, and for readers that do not look at stamps. Version keys are moved on, to a value
// they never had. What is stored meanwhile may be removed too. Resend after any error.
func (r *Redis) PurgeBehind(ctx context.Context, families []*mapping.Family, page func(removed int64)) (int64, error) {
	const op = "purge"
	be := r.backend.Load()
	if !be.guard.sealed() {
		return 0, r.fail(op, "", ErrNotAttached)
	}
	var total int64
	var globs globs
	for _, f := range families {
		if key, ok := f.VersionKey(nil); ok {
			// Stream 0 is below any other, so every version found is counted up.
			r.mu.Lock()
			err := r.moveVersion(ctx, be, key, zeroStream, 0)
			r.mu.Unlock()
			if err != nil {
				return total, r.fail(op, "", fmt.Errorf("family %s: %w", f.Name, err))
			}
			total++
			continue
		}
		if f.Versioned {
			globs.add(f.Pattern(nil), f.VersionKeys())
			globs.add(f.AbsentPattern(nil), nil)
		} else {
			globs.add(f.Pattern(nil), nil)
		}
	}
	if len(globs.list) > 0 {
		n, err := r.scanAll(ctx, be, scan{r: r, be: be, pattern: globs.pattern(), sort: globs.sort, stream: zeroStream, limiter: r.behind, page: page})
		total += n
		if err != nil {
			return total, r.fail(op, "", err)
		}
	}
	r.metrics.purges.Add(float64(len(families)))
	return total, nil
}

// globs are patterns of many families, which are matched here: a SCAN for each of them would
// look at all keys of the server as often as there are families.
type globs struct {
	list    []glob
	lengths []int            // of the literals that they begin with
	byBegin map[string][]int // in list
}

type glob struct {
	pieces   []string       // literals, between which anything stands
	versions *regexp.Regexp // of what it matches these are version keys, and the rest is nothing to it; nil where it matches data keys
}

func (g *globs) add(pattern string, versions *regexp.Regexp) {
	p := glob{pieces: pieces(pattern), versions: versions}
	begin := p.pieces[0]
	if g.byBegin == nil {
		g.byBegin = map[string][]int{}
	}
	known := false
	for _, n := range g.lengths {
		known = known || n == len(begin)
	}
	if !known {
		g.lengths = append(g.lengths, len(begin))
	}
	g.byBegin[begin] = append(g.byBegin[begin], len(g.list))
	g.list = append(g.list, p)
}

// pieces takes a pattern of Template.Pattern apart.
func pieces(pattern string) []string {
	var list []string
	var piece strings.Builder
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\' && i+1 < len(pattern):
			i++
			piece.WriteByte(pattern[i])
		case c == '*':
			list = append(list, piece.String())
			piece.Reset()
		default:
			piece.WriteByte(c)
		}
	}
	return append(list, piece.String())
}

func (g *glob) matches(key string) bool {
	if g.versions != nil && !g.versions.MatchString(key) {
		return false
	}
	last := len(g.pieces) - 1
	if last == 0 {
		return key == g.pieces[0]
	}
	rest, ok := strings.CutPrefix(key, g.pieces[0])
	if !ok {
		return false
	}
	for _, piece := range g.pieces[1:last] {
		if _, rest, ok = strings.Cut(rest, piece); !ok {
			return false
		}
	}
	return strings.HasSuffix(rest, g.pieces[last])
}

// pattern matches all that any of them matches, as far as their begin is the same.
func (g *globs) pattern() string {
	begin := g.list[0].pieces[0]
	for _, p := range g.list[1:] {
		n := 0
		for n < len(begin) && n < len(p.pieces[0]) && begin[n] == p.pieces[0][n] {
			n++
		}
		begin = begin[:n]
	}
	return globQuote(begin) + "*"
}

func globQuote(s string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `\`, `\\`).Replace(s)
}

// sort leaves what matches: keys to remove, and version keys to move on.
func (g *globs) sort(keys []string) (remove, versions []string) {
	for _, key := range keys {
		data, version := false, false
		for _, n := range g.lengths {
			if n > len(key) {
				continue
			}
			for _, i := range g.byBegin[key[:n]] {
				if p := &g.list[i]; p.matches(key) {
					data, version = data || p.versions == nil, version || p.versions != nil
				}
			}
		}
		if data {
			remove = append(remove, key)
		}
		if version {
			versions = append(versions, key)
		}
	}
	return remove, versions
}
