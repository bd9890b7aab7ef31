package mapping

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cdc-invalidator/cdc-invalidator/mapping/format"
)

// The defaults of what a file may leave out.
const (
	defaultName         = "cdc_invalidator" // of slot and publication
	defaultPrefix       = "inv:"
	defaultReplayWindow = 30 * time.Second
	defaultScanRate     = 20_000
	minHeartbeat        = 100 * time.Millisecond
	maxHeartbeat        = 10 * time.Second
)

func (p *parser) parseFile(root *yaml.Node) {
	o, ok := p.object(root, "", fields[format.Mappings]()...)
	if !ok {
		return
	}
	p.parseVersion(o)
	heartbeat := p.parseSource(o)
	p.parseRedis(o)
	p.parseClasses(o)
	p.parseKeys(o)
	p.parseMappings(o)
	if !heartbeat {
		p.file.Source.Heartbeat, p.file.Source.DefaultHeartbeat = defaultHeartbeat(p.file), true
	}
}

func (p *parser) parseVersion(o object) {
	e, ok := o.need("version", "the first line is: version: 1")
	if !ok {
		return
	}
	s, ok := p.scalar(e, "version: 1", "!!int", "!!float")
	if ok && s.text != "1" {
		p.fault(s.node, s.path, "write version: 1", "version %s of the format is not known here", s.quoted())
		return
	}
	p.file.Version = 1
}

// defaultHeartbeat is a third of the strictest budget in use: what a reader knows
// of an idle source is never younger than the last heartbeat.
func defaultHeartbeat(f *File) time.Duration {
	strictest := 3 * maxHeartbeat
	for _, k := range f.Keys {
		if k.Class != nil {
			strictest = min(strictest, k.Class.Staleness)
		}
	}
	return max(minHeartbeat, strictest/3)
}

// parseSource says whether the file sets the heartbeat.
func (p *parser) parseSource(root object) (heartbeat bool) {
	src := &p.file.Source
	src.Slot.Name, src.Publication.Name = defaultName, defaultName
	e, ok := root.need("source", "source: {url: ${DATABASE_URL}}")
	if !ok {
		return false
	}
	o, ok := p.object(e.value, e.path, fields[format.Source]()...)
	if !ok {
		return false
	}
	if e, ok := o.need("url", "url: ${DATABASE_URL}"); ok {
		src.URL = p.url(e, sourceURLHint, sourceURLProblem)
	}
	if e, ok := o.get("region"); ok {
		s, _ := p.text(e, "the name of a region: eu-west-1")
		src.Region = s.text
	}
	if e, ok := o.get("slot"); ok {
		p.named(e, slotName, "1 to 63 of a-z, 0-9 and _", &src.Slot.Name, &src.Slot.CreateIfNotExists)
	}
	if e, ok := o.get("publication"); ok {
		p.named(e, publicationName, "1 to 63 letters, digits and _, not starting with a digit", &src.Publication.Name, &src.Publication.CreateIfNotExists)
	}
	e, heartbeat = o.get("heartbeat")
	if heartbeat {
		src.Heartbeat, _ = p.duration(e, false)
	}
	return heartbeat
}

var (
	slotName        = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	publicationName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
)

// named reads {name: x, create_if_not_exists: true}.
func (p *parser) named(e entry, form *regexp.Regexp, want string, name *string, create *bool) {
	o, ok := p.object(e.value, e.path, fields[format.Slot]()...)
	if !ok {
		return
	}
	if e, ok := o.get("name"); ok {
		if s, ok := p.text(e, want); ok {
			if !form.MatchString(s.text) {
				p.fault(s.node, s.path, want, "%s cannot be a name", s.quoted())
			}
			*name = s.text
		}
	}
	if e, ok := o.get("create_if_not_exists"); ok {
		*create, _ = p.boolean(e)
	}
}

// url reads a URL, which is a secret: faults say what is wrong and quote nothing.
func (p *parser) url(e entry, hint string, problem func(string) string) Secret {
	n := e.value
	p.hide(n)
	if n.Kind == yaml.ScalarNode {
		if _, err := p.env.expand(n.Value); err != nil && err.unset && p.env.AllowUnset {
			return Secret{}
		}
	}
	s, ok := p.scalar(e, hint, "!!str")
	if !ok {
		return Secret{}
	}
	if why := problem(s.text); why != "" {
		p.fault(n, e.path, hint, "%s", why)
	}
	return NewSecret(s.text)
}

const (
	sourceURLHint = "postgres://user:password@host:5432/database, or host=... user=... dbname=...; / @ : ? # % in a password are written as %2F %40 %3A %3F %23 %25"
	redisURLHint  = "redis://[user:password@]host:6379/0, rediss:// (TLS), unix:///path/to/socket?db=0, redis+sentinel://host:26379,host:26379/master/0 " +
		"or redis+cluster://host:6379,host:6379 (rediss+... with TLS)"
)

func sourceURLProblem(u string) string {
	if u == "" {
		return "the URL is empty"
	}
	scheme, rest, ok := strings.Cut(u, "://")
	switch {
	case !ok && strings.Contains(u, "="):
		return "" // host=... dbname=..., which the client library reads
	case !ok:
		return "this is no URL: it has no ://, and no list of keyword=value"
	case scheme != "postgres" && scheme != "postgresql":
		return "the scheme of the URL is not postgres:// or postgresql://"
	case rest == "":
		return "the URL names no host and no database"
	case strings.ContainsAny(rest, " \t\r\n"):
		return "the URL has white space in it"
	}
	return ""
}

func redisURLProblem(u string) string {
	if u == "" {
		return "the URL is empty"
	}
	scheme, rest, ok := strings.Cut(u, "://")
	if !ok {
		return "this is no URL: it has no ://"
	}
	if !slices.Contains([]string{"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"}, scheme) {
		return "the scheme of the URL is not known"
	}
	rest, _, _ = strings.Cut(rest, "?")
	host, path, _ := strings.Cut(rest, "/")
	switch {
	case strings.ContainsAny(rest, " \t\r\n"):
		return "the URL has white space in it"
	case scheme == "unix" && (host[strings.LastIndexByte(host, '@')+1:] != "" || path == ""):
		return "the URL of a socket is unix:///path/to/socket, with three slashes"
	case scheme != "unix" && strings.Trim(host[strings.LastIndexByte(host, '@')+1:], ",") == "":
		return "the URL names no host"
	case strings.HasSuffix(scheme, "sentinel") && strings.Trim(path, "/") == "":
		return "the URL names no master: it follows the hosts, after a /"
	}
	return ""
}

func (p *parser) parseRedis(root object) {
	r := &p.file.Redis
	*r = Redis{Prefix: defaultPrefix, ReplayWindow: defaultReplayWindow, ScanRate: defaultScanRate}
	e, ok := root.need("redis", "redis: {url: ${REDIS_URL}}")
	if !ok {
		return
	}
	o, ok := p.object(e.value, e.path, fields[format.Redis]()...)
	if !ok {
		return
	}
	if e, ok := o.need("url", "url: ${REDIS_URL}"); ok {
		r.URL = p.url(e, redisURLHint, redisURLProblem)
	}
	if e, ok := o.get("prefix"); ok {
		const want = `text without braces, % * ? [ ] \ and white space: "inv:"`
		if s, ok := p.text(e, want); ok {
			if i := strings.IndexFunc(s.text, func(r rune) bool { return r != ':' && r < 0x80 && reserved[r] }); i >= 0 {
				line, col := p.place(s, i)
				p.add(Fault{Line: line, Col: col, Field: s.path, Hint: want, Message: s.why("a prefix cannot hold this character")})
			}
			r.Prefix = s.text
		}
	}
	if e, ok := o.get("dedicated"); ok {
		r.Dedicated, _ = p.boolean(e)
	}
	if e, ok := o.get("replay_window"); ok {
		r.ReplayWindow, _ = p.duration(e, false)
	}
	if e, ok := o.get("scan_rate"); ok {
		r.ScanRate, _ = p.integer(e, 1, 100_000_000)
	}
	if e, ok := o.get("stream_max_length"); ok {
		r.StreamMaxLength, _ = p.integer(e, 0, 10_000_000)
	}
}
