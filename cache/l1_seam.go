package cache

type l1Mark struct{}

func (c *Client) openL1() error                                       { return nil }
func (v *View[T]) mark(key string) l1Mark                             { return l1Mark{} }
func (v *View[T]) fromL1(key string, token *Token) (outcome[T], bool) { return outcome[T]{}, false }
func (v *View[T]) versionFromL1(name string) (string, bool)           { return "", false }
func (v *View[T]) storeL1(m l1Mark, out *outcome[T])                  {}
func (v *View[T]) storeVersion(m l1Mark, version string)              {}
func (v *View[T]) dropL1(key string)                                  {}
