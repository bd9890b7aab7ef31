package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// progress shows one line that is written over on a terminal, and a line a second
// everywhere else.
type progress struct {
	out      io.Writer
	terminal bool
	drawn    int // width of the line on the screen
}

func (p *progress) interval() time.Duration {
	if p.terminal {
		return 200 * time.Millisecond
	}
	return time.Second
}

// update replaces the line.
func (p *progress) update(line string) {
	if !p.terminal {
		fmt.Fprintln(p.out, line)
		return
	}
	const widest = 79 // a line that wraps cannot be written over
	if len(line) > widest {
		line = line[:widest]
	}
	fmt.Fprint(p.out, "\r", line, strings.Repeat(" ", max(0, p.drawn-len(line))))
	p.drawn = len(line)
}

// clear removes the line, so that other text can follow.
func (p *progress) clear() {
	if p.terminal && p.drawn > 0 {
		fmt.Fprint(p.out, "\r", strings.Repeat(" ", p.drawn), "\r")
		p.drawn = 0
	}
}

// say writes a line that stays.
func (p *progress) say(format string, args ...any) {
	p.clear()
	fmt.Fprintf(p.out, format+"\n", args...)
}
