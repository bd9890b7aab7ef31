package consistency

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// The reader notes where the log ends before it reads the row, each invalidation leaves
// its own position behind, and a fill from before that is refused. It looks right, and
// fails where a commit is in the log that nobody sees yet: the reader's position is
// beyond the commit, its row is the old one.
const fencedFill = `local marker = redis.call('GET', KEYS[2])
if marker and marker > ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. ARGV[2])
return 1`

func markerKey(row string) string { return "marker:" + row }

func fencedByLSNOptions() worldOptions { return worldOptions{ownSource: true} }

func fencedByLSN(s *stage) {
	c, r := cell{view: viewsOf(item)[0], row: 1}, s.newNaive()
	r.fill = func(ctx context.Context, key, value, position string) error {
		at, err := lsn.Parse(position)
		if err != nil {
			return err
		}
		return s.rdb.Eval(ctx, fencedFill, []string{key, markerKey(fmt.Sprint(c.row))}, at.Hex(), value).Err()
	}
	consumer := s.newMarkers()
	s.see(r, c)
	// It works where nothing is in its way.
	s.change(c.row)
	s.eventually("the key is deleted", func() bool { return consumer.seen.Load() == 1 })
	s.see(r, c)
	s.compareCached()
	if s.result.caught() {
		s.t.Error("it fails without a standby too: the control proves nothing")
	}

	l := s.limbo()
	l.change(c.row)
	s.eventually("the key is deleted", func() bool { return consumer.seen.Load() == 2 })
	s.see(r, c)
	l.release()
	s.exposed(r, c)
}

// markers is a consumer that deletes a key and leaves the commit's position as soon as it
// has read it from the log.
type markers struct {
	s      *stage
	stream *replication.Stream
	seen   atomic.Int64 // changes that are dealt with
}

func (s *stage) newMarkers() *markers {
	s.t.Helper()
	s.exec(fmt.Sprintf("CREATE PUBLICATION %s_pub FOR TABLE items", s.slot),
		fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", s.slot))
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := replication.OpenStream(ctx, replication.StreamOptions{
		URL: s.url, Slot: s.slot, Publication: s.slot + "_pub", StatusInterval: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	m := &markers{s: s, stream: stream}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.run(ctx); !errors.Is(err, context.Canceled) {
			s.t.Errorf("the consumer of the control: %v", err)
		}
	})
	s.t.Cleanup(func() {
		cancel()
		wg.Wait()
		_ = stream.Close()
	})
	return m
}

func (m *markers) run(ctx context.Context) error {
	dec := decoder.New()
	var rows []string
	for {
		if err := m.stream.Fill(ctx); err != nil {
			return err
		}
		for {
			data, ok, err := m.stream.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			msg, err := dec.Decode(data)
			if err != nil {
				return err
			}
			switch msg.Kind {
			case decoder.KindChange:
				image := msg.Change.New
				if image == nil {
					image = msg.Change.Old
				}
				rows = append(rows, string(image[0].Data))
			case decoder.KindCommit:
				for _, row := range rows {
					p := m.s.rdb.TxPipeline()
					p.Set(ctx, markerKey(row), msg.Commit.EndLSN.Hex(), 0)
					p.Unlink(ctx, "item:"+row)
					if _, err := p.Exec(ctx); err != nil {
						return err
					}
					m.seen.Add(1)
				}
				rows = rows[:0]
			}
		}
	}
}
