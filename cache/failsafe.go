package cache

import (
	"context"
	"time"
)

// mayGive says whether an old value may be returned because the source is down: the
// family's class allows it, nothing says that invalidations are lost, and what it
// lacks is no older than the class's staleness and fail_safe together.
func (v *View[T]) mayGive(old *outcome[T], token *Token) bool {
	class := v.f.Class
	if class.FailSafe == 0 || old.meta.negative || token != nil && !token.metBy(&old.meta) {
		return false
	}
	if class.OnDoubt == onDoubtServe {
		return true
	}
	ok, _ := old.known.proves(v.c.clock, class, time.Now(), class.FailSafe)
	return ok
}

// giveOld is the old value instead of the error.
func (v *View[T]) giveOld(old *outcome[T], err error) outcome[T] {
	v.c.log.Debug("the source is down: an old value is given", "family", v.f.Name, "error", err)
	old.result = resultFailSafe
	return *old
}

// lastResort looks whether there is an old value to give.
func (v *View[T]) lastResort(ctx context.Context, key string, token *Token, under *controlState) (old outcome[T], ok bool) {
	known := under
	if !v.f.Versioned {
		known = v.c.control.look()
	}
	if !v.c.redisUp(time.Now()) {
		return old, false
	}
	// The load's time may be used up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	raw, err := v.c.rdb.Get(ctx, key).Result()
	v.c.asked(ctx, err)
	if err != nil {
		return old, false
	}
	e, ok := parseEntry(raw)
	if !ok || !v.f.believes(known, e.stamp) {
		return old, false
	}
	old, ok = v.open(raw)
	old.known, old.stamp = known, known.stamp(v.f)
	return old, ok && v.mayGive(&old, token)
}
