//go:build !failpoint

package failpoint

import "context"

// Hit does nothing.
func Hit(Point) {}

// Hold does nothing.
func Hold(context.Context, Point) {}
