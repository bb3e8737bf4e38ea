package registry

// CheckSubject says what is wrong with a subject pattern, as NATS reads it, and
// whether it can match an event at all. It is the rule of Definition.Subjects.
func CheckSubject(pattern string) error { return validSubject(pattern) }
