package cli

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// As somebody runs it who tries the program: the plain binary, for as long as it runs when
// nothing is said. The race detector would change what is fast and what is slow.
func TestDemoProvesItsResult(t *testing.T) {
	path := filepath.Join(t.TempDir(), programName)
	if out, err := exec.Command("go", "build", "-o", path, "../../cmd/cdc-invalidator").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, "demo")
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil || errOut.Len() > 0 {
		t.Errorf("%v, stderr %q, stdout\n%s", err, &errOut, &out)
	}
	for _, want := range []string{"stale: 0 of ", "commit to deleted", "keys invalidated"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, &out)
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
