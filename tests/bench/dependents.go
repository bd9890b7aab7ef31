package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
	goredis "github.com/redis/go-redis/v9"
)

// members of the entity that is invalidated.
const members = 10_000

// dependents measures how fast an entity with many registered keys is invalidated, and
// what other clients of the server notice of it: at the scan_rate that a file has unless it
// says otherwise, and at one that does not hold it up.
func (b *bench) dependents(ctx context.Context) error {
	fmt.Printf("\ndependents: a row with %d registered keys changes; GETs of other clients, ms\n\n", members)
	fmt.Println("| scan_rate | run | keys/s | idle p99 | p99 meanwhile | x idle |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, rate := range []int{20_000, 200_000} {
		if err := b.dependentsAt(ctx, rate); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) dependentsAt(ctx context.Context, scanRate int) (err error) {
	_, stop, err := b.startReaders(ctx, scanRate)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	idle, err := b.probe(ctx, func(context.Context) error { time.Sleep(2 * time.Second); return nil })
	if err != nil {
		return err
	}
	var rates, times []float64
	for run := range b.runs {
		if err := b.register(ctx, 7); err != nil {
			return err
		}
		var took time.Duration
		busy, err := b.probe(ctx, func(ctx context.Context) error {
			began := time.Now()
			if _, err := b.conn.Exec(ctx, `UPDATE users SET balance = balance + 1 WHERE id = 7`); err != nil {
				return err
			}
			err := b.untilGone(ctx, "inv:dep:user:7")
			took = time.Since(began)
			return err
		})
		if err != nil {
			return err
		}
		left, err := b.rdb.Exists(ctx, "page:0", "page:"+strconv.Itoa(members-1)).Result()
		if err != nil {
			return err
		}
		if left != 0 {
			return errors.New("registered keys are still there")
		}
		rate := members / took.Seconds()
		rates = append(rates, rate)
		p99 := func(h *hdr.Histogram) float64 { return float64(h.ValueAtQuantile(99)) / 1e3 }
		times = append(times, p99(busy)/p99(idle))
		fmt.Printf("| %d | %d | %.0fk | %.2f | %.2f | %.2f |\n", scanRate, run+1, rate/1e3, p99(idle), p99(busy), p99(busy)/p99(idle))
	}
	slices.Sort(rates)
	slices.Sort(times)
	fmt.Printf("| %d | median | %.0fk | | | %.2f |\n", scanRate, rates[len(rates)/2]/1e3, times[len(times)/2])
	return nil
}

// register makes the keys and their registration as readers do.
func (b *bench) register(ctx context.Context, id int) error {
	expiry := float64(time.Now().Add(time.Hour).UnixMilli())
	set := "inv:dep:user:" + strconv.Itoa(id)
	for at := 0; at < members; at += 1000 {
		_, err := b.rdb.Pipelined(ctx, func(p goredis.Pipeliner) error {
			for i := at; i < at+1000; i++ {
				key := "page:" + strconv.Itoa(i)
				p.Set(ctx, key, value, time.Hour)
				p.ZAdd(ctx, set, goredis.Z{Score: expiry + float64(i), Member: "page " + key})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) untilGone(ctx context.Context, key string) error {
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		n, err := b.rdb.Exists(ctx, key).Result()
		if err != nil || n == 0 {
			return err
		}
		time.Sleep(200 * time.Microsecond)
	}
	return fmt.Errorf("%s is still there after a minute", key)
}

// probe measures another client's GETs, 2,000 a second, while work runs.
func (b *bench) probe(ctx context.Context, work func(context.Context) error) (*hdr.Histogram, error) {
	o, err := goredis.ParseURL(b.redis.URL())
	if err != nil {
		return nil, err
	}
	rdb := goredis.NewClient(o)
	defer rdb.Close()
	done := make(chan error, 1)
	go func() { done <- work(ctx) }()
	h := hdr.New(1, 60_000_000, 3)
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return h, err
		case <-tick.C:
			began := time.Now()
			if err := rdb.Get(ctx, "bare").Err(); err != nil && !errors.Is(err, goredis.Nil) {
				return nil, err
			}
			if err := h.RecordValue(max(1, time.Since(began).Microseconds())); err != nil {
				return nil, err
			}
		}
	}
}
