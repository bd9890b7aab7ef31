package replication

import (
	"github.com/jackc/pgx/v5/pgconn"
)

// mendsItself says of a SQLSTATE whether waiting may mend it: of the classes that are about the
// state of a connection or of the server, each code is decided here. What an operator has to
// change first is none, and neither is what the same question will meet again.
func mendsItself(code string) bool {
	switch code {
	case "08000", "08001", "08003", "08004", "08006", "08007": // the connection; but not 08P01, a violation of the protocol
		return true
	case "40000", "40001", "40003", "40P01": // rolled back for others' sake; but not 40002, a constraint
		return true
	case "53000", "53100", "53200", "53300": // resources, disk, memory, connections; but not 53400, a limit that somebody has set
		return true
	case "57000", "57014", "57P01", "57P02", "57P03", "57P05": // an operator, shutting down, starting up, idle for too long; but not 57P04, the database was dropped
		return true
	case "58000", "58030": // the system, I/O; but not 58P01 and 58P02, files that are missing or in the way
		return true
	}
	return false
}

// refusedRole says what mends a refusal of the role. One code stands for many reasons, and the
// text is translated; where the server found it tells them apart.
func refusedRole(pg *pgconn.PgError) string {
	const byHBA = "see that pg_hba.conf has a line for this host, database and role, with or without TLS as source.url has it;\n" +
		"where it asks for a client certificate (clientcert), name one in source.url: sslcert=/path/to/client.crt&sslkey=/path/to/client.key"
	const role = "see that the role that source.url names is there and may log in: CREATE ROLE ... LOGIN; or ALTER ROLE ... LOGIN;"
	switch {
	case pg.Code == "28P01" && pg.Routine == "recv_password_packet":
		return "give the password in source.url, or the file that has it: the server asks for one"
	case pg.Code == "28P01":
		return "check the user and password in source.url; a role that does not exist, or has no password, is refused in the same words"
	}
	switch pg.Routine {
	case "InitializeSessionUserId":
		return role
	case "ProcessStartupPacket":
		return "name the user in source.url: postgres://user:password@host:5432/database"
	case "ClientAuthentication":
		return byHBA
	case "auth_failed", "check_usermap", "ident_inet", "auth_peer", "CheckCertAuth":
		return "the method that pg_hba.conf has for this host, database and role (peer, ident, cert, gss, ldap, ...) does not admit the user:\n" +
			"use the user that it admits, map it in pg_ident.conf, or have a line with scram-sha-256 and give a password in source.url"
	}
	return role + "\n" + byHBA
}
