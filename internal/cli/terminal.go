package cli

import (
	"io"
	"os"

	"golang.org/x/term"
)

// atTerminal says whether a stream leads to a terminal, with somebody at it. Not every
// character device is one: /dev/null is not.
func atTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// canRewrite says whether w shows a line that is written over.
func canRewrite(w io.Writer) bool {
	return os.Getenv("TERM") != "dumb" && atTerminal(w)
}
