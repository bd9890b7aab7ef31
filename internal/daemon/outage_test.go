package daemon

import (
	"testing"
	"time"
)

// An attempt every two seconds for five minutes is a line for each reason, and one each 30 s.
func TestAnOutageIsNotSaidAllTheTime(t *testing.T) {
	var o outage
	begin := time.Unix(1000, 0)
	said := map[string]int{}
	for at := time.Duration(0); at < 5*time.Minute; at += 2 * time.Second {
		reason := "dial tcp 127.0.0.1:" + []string{"41", "52"}[int(at/time.Second)/2%2] + ": connection refused"
		if at > time.Minute && at < 2*time.Minute {
			reason = "the database system is starting up"
		}
		lasts, news := o.says(begin.Add(at), reason)
		if lasts != at {
			t.Errorf("after %s it has lasted %s", at, lasts)
		}
		if news {
			said[reason[:3]]++
		}
	}
	if said["dia"] < 2 || said["dia"]+said["the"] > 12 || said["the"] < 1 {
		t.Errorf("%v", said)
	}
	if lasted := o.over(begin.Add(5 * time.Minute)); lasted != 5*time.Minute {
		t.Errorf("it has lasted %s", lasted)
	}
	if lasted := o.over(begin.Add(6 * time.Minute)); lasted != 0 {
		t.Errorf("none has lasted %s", lasted)
	}
	if lasts, news := o.says(begin.Add(7*time.Minute), "dial tcp 127.0.0.1:41: connection refused"); lasts != 0 || !news {
		t.Errorf("the next one: %s, %v", lasts, news)
	}
}
