package cli

import (
	"strings"
	"testing"
)

func TestDemoProvesItsResult(t *testing.T) {
	code, out, errOut := runMain(t, "demo", "--duration", "1s")
	if code != exitOK || errOut != "" {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
	for _, want := range []string{"stale: 0 of ", "commit to deleted", "keys invalidated"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
}

func TestDemoRefusesBadArguments(t *testing.T) {
	for _, args := range [][]string{{"--duration", "-1s"}, {"--duration", "soon"}, {"--http", "nonsense"}, {"extra"}} {
		if code, _, errOut := runMain(t, append([]string{"demo"}, args...)...); code != exitUsage {
			t.Errorf("%v: exit code %d, stderr %q", args, code, errOut)
		}
	}
}

func TestDemoWithoutServersExits69(t *testing.T) {
	t.Setenv("CDC_SERVERS", "docker")
	t.Setenv("PATH", t.TempDir())
	code, _, errOut := runMain(t, "demo")
	if code != exitUnavailable || !strings.Contains(errOut, "docker command is not installed") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}
