package sink

import (
	"bytes"
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

const (
	// A message is full at either bound. They keep the stream at about messageBytes times
	// its length at most.
	messageKeys  = 256
	messageBytes = 16 << 10
	// publishMessages is how many go into one script call, which holds up every other
	// client of the server.
	publishMessages = 16
	// publishedKeys of one batch are listed. More than that would displace what slow
	// readers have not read yet, and most of a reader's memory would go anyway.
	publishedKeys = 16384
)

// stream tells readers which keys were removed, so that they can keep values in their
// own memory. A nil stream is one that is switched off: its methods do nothing.
//
// What a reader needs to know is that it has missed no message. So messages are numbered
// without a hole within a session, and whatever leaves a doubt (an error, an attachment)
// begins another session, at which every reader drops what it has. In particular a
// message whose reply was lost is sent again in a new session: should the first one have
// been written, or be written later, it stands at a break for the reader.
type stream struct {
	key     string
	length  int
	metrics *metrics

	session string
	n       uint64
	broken  bool      // it is not known that all of the session so far was written
	beat    time.Time // up to when nothing is missing, as this attachment has proved
	told    time.Time // what the newest message says of it

	// What the next messages say.
	all   bool
	buf   []byte // keys, each with a newline
	count int
	ends  []int // of the messages that are full, in buf
	open  int   // keys in the last message
}

func newStream(config mapping.Redis, prefix, slot string, m *metrics) *stream {
	if config.StreamMaxLength <= 0 {
		return nil
	}
	return &stream{key: mapping.StreamKey(prefix, slot), length: config.StreamMaxLength, metrics: m, broken: true}
}

// attach begins anew: what this Redis has is not what was published before, and until
// a heartbeat has come through nothing is known of it.
func (s *stream) attach() {
	if s != nil {
		s.broken, s.beat, s.told = true, time.Time{}, time.Time{}
		s.reset()
	}
}

// reset forgets what was gathered.
func (s *stream) reset() {
	if s == nil {
		return
	}
	if cap(s.buf) > 1<<20 { // keys of one large batch must not be held for good
		s.buf = nil
	}
	s.all, s.buf, s.count, s.ends, s.open = false, s.buf[:0], 0, s.ends[:0], 0
}

// doubt begins another session: something was removed that no message will name.
func (s *stream) doubt() {
	if s != nil {
		s.broken = true
	}
}

// add has the next messages name a key that was removed, marked as stale or moved. It
// copies the key.
func (s *stream) add(key []byte) {
	if s == nil || s.all {
		return
	}
	if s.count == publishedKeys || bytes.IndexByte(key, '\n') >= 0 { // not from a template
		s.everything()
		return
	}
	if s.open == messageKeys || s.open > 0 && len(s.buf)-s.begin()+len(key) > messageBytes {
		s.ends = append(s.ends, len(s.buf))
		s.open = 0
	}
	s.buf = append(append(s.buf, key...), '\n')
	s.count++
	s.open++
}

// begin is where the open message's keys begin.
func (s *stream) begin() int {
	if len(s.ends) == 0 {
		return 0
	}
	return s.ends[len(s.ends)-1]
}

// everything has the next message say that all was removed.
func (s *stream) everything() {
	if s != nil {
		s.reset()
		s.all = true
	}
}

// message is the part of one that differs within a call.
type message struct {
	fresh time.Time
	all   bool
	keys  []byte // separated by newlines
}

// messages is what there is to publish. Only the last may say how fresh all is: what is
// in it is part of what was visible then.
func (s *stream) messages() []message {
	var list []message
	if s.all {
		list = append(list, message{all: true})
	}
	if s.open > 0 {
		s.ends = append(s.ends, len(s.buf))
		s.open = 0
	}
	start := 0
	for _, end := range s.ends {
		list = append(list, message{keys: s.buf[start : end-1]})
		start = end
	}
	if len(list) == 0 {
		if s.beat.Equal(s.told) {
			return nil
		}
		list = append(list, message{})
	}
	for i := range list {
		list[i].fresh = s.told
	}
	list[len(list)-1].fresh = s.beat
	return list
}

// command is the call that appends messages. Until it was acknowledged the session is
// broken.
func (s *stream) command(ctx context.Context, script *script, replID string, list []message) *redis.Cmd {
	if s.broken {
		s.session, s.n = nonce(), 0
		s.metrics.streamSessions.Inc()
	}
	s.broken = true
	args := make([]any, 0, 3+4*len(list))
	args = append(args, replID, s.length, s.session)
	for _, m := range list {
		s.n++
		all := ""
		if m.all {
			all = "1"
		}
		args = append(args, hex64(s.n), hexTime(m.fresh), all, m.keys)
	}
	return script.command(ctx, []any{s.key}, args)
}

// publish writes what was gathered. It returns nil only when all of it was acknowledged.
func (r *Redis) publish(ctx context.Context, be *backend) error {
	s := r.news
	if s == nil {
		return nil
	}
	for list := s.messages(); len(list) > 0; {
		n := min(len(list), publishMessages)
		part := list[:n]
		err := r.callControl(ctx, be, func(replID string) *redis.Cmd {
			return s.command(ctx, &r.scripts.publish, replID, part)
		})
		if err != nil {
			s.broken = true // also where nothing was sent: what is left out must show
			return err
		}
		s.broken, s.told = false, part[n-1].fresh
		r.metrics.streamMessages.Add(float64(n))
		list = list[n:]
	}
	if s.all {
		r.metrics.streamPurges.Inc()
	}
	s.reset()
	return nil
}

// publishBatch tells of a batch whose every removal was acknowledged. Before that, a
// reader that drops its value could read the old one again and keep it.
func (r *Redis) publishBatch(ctx context.Context, be *backend, b *ordering.Batch) error {
	s := r.news
	if s == nil {
		return nil
	}
	for i := range b.Len() {
		e := b.Entry(i)
		if e.Held { // told of when it is applied
			continue
		}
		switch e.Op {
		case mapping.OpDelete, mapping.OpSoft, mapping.OpAdvance:
			s.add(e.Key)
		case mapping.OpPurge:
			s.everything()
		case mapping.OpLookup, mapping.OpDependents: // what they stand for is added when it is known
		}
	}
	if f := b.FreshAsOf(); !f.IsZero() {
		s.beat = f
	}
	return r.publish(ctx, be)
}

// Fresh tells the readers of the invalidation stream that all is applied which was visible
// on the source at a time. For a batch with entries Apply does that by itself. Without a
// stream it does nothing.
func (r *Redis) Fresh(ctx context.Context, at time.Time) error {
	if r.news == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	be, err := r.ready(ctx)
	if err == nil {
		r.news.reset()
		r.news.beat = at
		err = r.publish(ctx, be)
	}
	return r.fail("publish", "", err)
}
