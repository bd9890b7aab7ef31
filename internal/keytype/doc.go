// Package keytype knows what stands in a key for a value of a column: the text that the
// walsender prints for the column's type. The daemon has that text from the log. A reader has
// a Go value, which has no text of its own that would be right for every type: it is rendered
// here for the type of the columns that its variable comes from, or refused.
//
// Read asks the source's catalogs for these types. Nothing else here does any I/O.
package keytype
