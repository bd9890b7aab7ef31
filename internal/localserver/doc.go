// Package localserver starts real Postgres and Redis servers of its own, for the
// demo and for the tests: in a temporary folder, on loopback, under an account
// without privileges, and gone when the program that started them is gone.
//
// # Where the programs come from
//
// Installed programs come first: those that CDC_POSTGRES_BIN (the folder with
// postgres and initdb) and CDC_REDIS_BIN (the server program) name, else the
// newest version found in PATH and in the usual folders of the distributions. If
// there are none and the docker command works, containers of CDC_POSTGRES_IMAGE
// and CDC_REDIS_IMAGE are used. CDC_SERVERS=local or CDC_SERVERS=docker settles it.
//
// # What is left behind
//
// Nothing, in three steps. Close stops the server and removes its folder. If the
// owner dies without Close, the kernel stops the servers (parent death signal;
// Linux only). Folders and containers of dead owners are removed when the next
// server is started: each folder holds a lock file that only a living owner holds.
//
// # Safety
//
// The servers hold throw-away data and trade durability for speed (fsync off) unless
// asked otherwise. They listen on 127.0.0.1 and on a socket in a folder that other
// accounts cannot enter. Postgres asks for a random password on TCP, because
// whoever gets in as its superuser can run programs as its account.
package localserver
