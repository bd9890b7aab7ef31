package daemon

import "strings"

// remedied is an error that knows what mends it.
type remedied interface {
	error
	// Remedy is the text without what mends it, and that, "" where it is not known.
	Remedy() (problem, fix string)
}

// explain takes an error apart for a condition: what is the matter, and the one thing that
// mends it. Where no error in it knows that, the condition's own holds.
func explain(err error, condition string) (reason, fix string) {
	reason = err.Error()
	walk(err, func(e error) {
		r, ok := e.(remedied)
		if !ok {
			return
		}
		problem, f := r.Remedy()
		if f == "" {
			return
		}
		reason = strings.Replace(reason, r.Error(), problem, 1)
		if fix == "" {
			fix = f
		}
	})
	if fix == "" {
		fix = fixFor(condition)
	}
	return reason, fix
}

// walk calls f with an error and all that it wraps, outermost first.
func walk(err error, f func(error)) {
	if err == nil {
		return
	}
	f(err)
	switch w := err.(type) { //nolint:errorlint // each is looked at
	case interface{ Unwrap() error }:
		walk(w.Unwrap(), f)
	case interface{ Unwrap() []error }:
		for _, e := range w.Unwrap() {
			walk(e, f)
		}
	}
}
