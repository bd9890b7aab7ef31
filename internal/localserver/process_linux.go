package localserver

import "syscall"

// childAttr puts the child into a process group of its own, so that a Ctrl-C on
// the terminal reaches us and not it, and has the kernel signal it when the
// thread that started it ends.
func childAttr(account *account, deathSignal syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: deathSignal, Credential: account.credential()}
}
