package cli

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is the two ends of a pseudo terminal.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

func TestApplyAsksOnATerminal(t *testing.T) {
	path, _ := provisionFile(t)
	ours, theirs := terminal(t)
	for _, c := range []struct {
		answer string
		code   int
	}{{"y\n", exitUsage}, {"\n", exitUsage}, {"no\n", exitUsage}, {"yes\n", exitOK}} {
		if _, err := ours.WriteString(c.answer); err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		code := Main(t.Context(), []string{"apply", "--config", path}, theirs, &out, &errOut)
		if code != c.code || !strings.Contains(out.String(), "Do it? ") || strings.Contains(out.String(), "Done.") != (c.code == exitOK) {
			t.Errorf("%q: exit code %d, stderr %q\n%s", c.answer, code, errOut.String(), out.String())
		}
	}
}

// /dev/null is a character device, as a terminal is, and nobody answers there.
func TestApplyAsksNobodyWithoutATerminal(t *testing.T) {
	path, _ := provisionFile(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var out, errOut bytes.Buffer
	code := Main(t.Context(), []string{"apply", "--config", path}, null, &out, &errOut)
	if code != exitUsage || strings.Contains(out.String(), "Do it? ") || !strings.Contains(errOut.String(), "give --yes") {
		t.Errorf("exit code %d, stderr %q\n%s", code, errOut.String(), out.String())
	}
	_, theirs := terminal(t)
	t.Setenv("TERM", "xterm")
	if canRewrite(null) || !canRewrite(theirs) {
		t.Error("/dev/null shows a progress line, or a terminal does not")
	}
}
