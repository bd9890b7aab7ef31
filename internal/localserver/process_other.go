//go:build !linux

package localserver

import "syscall"

// childAttr: only Linux can tie a child's life to ours; elsewhere a server
// outlives an owner that is killed with SIGKILL.
func childAttr(account *account, _ syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: account.credential()}
}
