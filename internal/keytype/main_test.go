package keytype

import (
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }
