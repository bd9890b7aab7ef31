package cli

import (
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/redact"
)

// refuseURLs ends a command that was given a URL where the name of a file belongs, before
// the name gets into a message or a log: there may be a password in it.
func refuseURLs(cmd *cobra.Command, args []string) error {
	isURL := func(name string) bool {
		if !redact.MayHold(name) {
			return false
		}
		_, err := os.Stat(name)
		return err != nil
	}
	for _, flag := range []string{"config", "output"} {
		if f := cmd.Flags().Lookup(flag); f != nil && isURL(f.Value.String()) {
			return usageErrorf("--%s: this looks like a URL and not like the name of a file; it is not shown, since it may hold a password", flag)
		}
	}
	for i, arg := range args {
		if isURL(arg) {
			return usageErrorf("argument %d looks like a URL and not like the name of a file; it is not shown, since it may hold a password", i+1)
		}
	}
	return nil
}

// quoteFree is an error's text without arguments that may hold a password, which the
// libraries and our own verdicts on them quote.
func quoteFree(err error, args []string) string {
	text := err.Error()
	hide := func(arg string) {
		if arg == "" {
			return
		}
		quoted := strconv.Quote(arg)
		for _, form := range []string{arg, quoted[1 : len(quoted)-1], strconv.Quote(quoted)} {
			text = strings.ReplaceAll(text, form, redact.Hidden)
		}
	}
	for _, arg := range args {
		flag, value, ok := strings.Cut(arg, "=")
		switch {
		case strings.HasPrefix(arg, "-") && !strings.HasPrefix(arg, "--"):
			// Several flags of one letter, or one with its value: -pPASSWORD.
			text = strings.ReplaceAll(text, " in "+arg, "")
			if redact.MayHold(arg) {
				hide(strings.TrimLeft(arg[min(2, len(arg)):], "="))
			}
		case strings.HasPrefix(arg, "--"):
			if name := strings.TrimLeft(flag, "-abcdefghijklmnopqrstuvwxyz"); name != "" && redact.MayHold(arg) { // none of ours
				hide(flag)
			}
			if ok && (redact.MayHold(value) || redact.Names(flag)) {
				hide(value)
			}
		case redact.MayHold(arg):
			hide(arg)
		}
	}
	return text
}
