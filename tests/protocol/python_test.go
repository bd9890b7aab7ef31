package protocol

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// pythonReader is docs/python/cdc_cache.py in a process of its own.
type pythonReader struct {
	mu     sync.Mutex
	in     io.WriteCloser
	nextID int
	reads  map[int]*read
	tokens map[int]chan string
}

// python is an interpreter that has the modules: CDC_PYTHON, else the first of these.
// Debian's packages are for its own python3, which need not be the first in the PATH.
func python(t *testing.T) string {
	t.Helper()
	candidates := []string{"python3", "/usr/bin/python3"}
	if named := os.Getenv("CDC_PYTHON"); named != "" {
		candidates = []string{named}
	}
	for _, name := range candidates {
		if exec.CommandContext(t.Context(), name, "-c", "import redis, psycopg").Run() == nil {
			return name
		}
	}
	t.Fatalf("no python3 with the modules redis and psycopg (tried %q): apt-get install python3-redis python3-psycopg, or set CDC_PYTHON", candidates)
	return ""
}

// event is what the process says.
type event struct {
	ID    int    `json:"id"`
	Event string `json:"event"`
	Value string `json:"value"`
}

// pythonFamily are the arguments of cdc_cache.Family.
type pythonFamily struct {
	Name         string  `json:"name"`
	Key          string  `json:"key"`
	Version      string  `json:"version"`
	TTL          float64 `json:"ttl"`
	Staleness    float64 `json:"staleness"`
	StaleFor     float64 `json:"stale_for"`
	FailSafe     float64 `json:"fail_safe"`
	NegativeTTL  float64 `json:"negative_ttl"`
	Hold         float64 `json:"hold"`
	ServeInDoubt bool    `json:"serve_in_doubt"`

	Columns map[string][]string `json:"columns"`
}

func (w *world) pythonFamilies() []pythonFamily {
	var all []pythonFamily
	plan := w.plan
	for _, k := range w.file.Keys {
		f := pythonFamily{Name: k.Name, Key: k.Template.String(), TTL: k.TTL.Seconds(), Staleness: k.Class.Staleness.Seconds(),
			StaleFor: k.StaleFor.Seconds(), FailSafe: k.Class.FailSafe.Seconds(), NegativeTTL: k.NegativeTTL.Seconds(),
			Hold: k.Class.Hold().Seconds(), ServeInDoubt: k.Class.OnDoubt == "serve"}
		if k.Version != nil {
			f.Version = k.Version.String()
		}
		if f.TTL == 0 {
			f.TTL = time.Hour.Seconds()
		}
		family, _ := plan.Family(k.Name)
		f.Columns = map[string][]string{}
		for _, v := range plan.KeyVars(family) {
			for _, s := range v.Sources {
				f.Columns[v.Name] = append(f.Columns[v.Name], s.Schema+"."+s.Table+"."+s.Column)
			}
		}
		all = append(all, f)
	}
	return all
}

func (w *world) pythonEntities() map[string][][]string {
	all := map[string][][]string{}
	for _, e := range w.plan.Entities() {
		for _, v := range e.KeyVars() {
			var columns []string
			for _, s := range v.Sources {
				columns = append(columns, s.Schema+"."+s.Table+"."+s.Column)
			}
			all[e.Kind] = append(all[e.Kind], columns)
		}
	}
	return all
}

func newPythonReader(t *testing.T, w *world, redisURL string) reader {
	t.Helper()
	cmd := exec.Command(python(t), "-u", filepath.Join("testdata", "reader.py"))
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &pythonReader{in: in, reads: make(map[int]*read), tokens: make(map[int]chan string)}
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		p.listen(t, out, ready)
	}()
	t.Cleanup(func() {
		_ = in.Close()
		<-ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("the Python reader: %v", err)
		}
	})
	p.say(t, map[string]any{"package": filepath.Join("..", "..", "docs", "python"), "lua": filepath.Join("..", "..", "cache", "lua"),
		"redis": redisURL, "postgres": w.db.URL, "slot": w.file.Source.Slot.Name, "lease": lease.Seconds(), "families": w.pythonFamilies(), "entities": w.pythonEntities()})
	select {
	case <-ready:
	case <-ended:
		t.Fatal("the Python reader did not start; what it said is above")
	case <-time.After(patience):
		t.Fatal("the Python reader does not start")
	}
	return p
}

func (p *pythonReader) say(t *testing.T, message any) {
	line, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		t.Errorf("tell the Python reader: %v", err)
	}
}

func (p *pythonReader) listen(t *testing.T, out io.Reader, ready chan struct{}) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20) // a value is a line
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Errorf("the Python reader said %q: %v", lines.Text(), err)
			continue
		}
		p.mu.Lock()
		r, token := p.reads[e.ID], p.tokens[e.ID]
		p.mu.Unlock()
		switch {
		case e.Event == "ready":
			close(ready)
		case token != nil:
			token <- e.Value
		case e.Event == "loading":
			r.loading <- struct{}{}
		default:
			r.done <- result{e.Event, e.Value}
		}
	}
}

func (p *pythonReader) id() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nextID++
	return p.nextID
}

func (p *pythonReader) begin(t *testing.T, r request) *read {
	t.Helper()
	id := p.id()
	under := newRead(func(step string) { p.say(t, map[string]any{"id": id, "go": step}) })
	p.mu.Lock()
	p.reads[id] = under
	p.mu.Unlock()
	p.say(t, struct {
		ID int `json:"id"`
		request
	}{id, r})
	return under
}

func (p *pythonReader) token(t *testing.T) string {
	t.Helper()
	id, answer := p.id(), make(chan string, 1)
	p.mu.Lock()
	p.tokens[id] = answer
	p.mu.Unlock()
	p.say(t, map[string]any{"id": id, "token": true})
	select {
	case token := <-answer:
		return token
	case <-time.After(patience):
		t.Fatal("the Python reader gives no token")
		return ""
	}
}
