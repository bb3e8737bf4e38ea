package deliver

import "strings"

// MinimiseSubjects drops every pattern that another one of the list covers:
// the server refuses a consumer whose filters overlap in that way. What is
// left matches the same subjects. Order is kept.
func MinimiseSubjects(subjects []string) []string {
	var out []string
	for i, s := range subjects {
		covered := false
		for j, other := range subjects {
			// Of two equal patterns the first stays.
			if i != j && CoversSubject(other, s) && (!CoversSubject(s, other) || j < i) {
				covered = true
				break
			}
		}
		if !covered {
			out = append(out, s)
		}
	}
	return out
}

// MatchSubject says whether a pattern matches the subject of an event.
func MatchSubject(pattern, subject string) bool {
	for {
		want, rest, more := strings.Cut(pattern, ".")
		if want == ">" {
			return subject != ""
		}
		have, left, longer := strings.Cut(subject, ".")
		if want != "*" && want != have || more != longer || have == "" {
			return false
		}
		if !more {
			return true
		}
		pattern, subject = rest, left
	}
}

// CoversSubject says whether every subject that b matches is matched by a.
func CoversSubject(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i, t := range as {
		switch {
		case t == ">":
			return len(bs) > i
		case i >= len(bs) || bs[i] == ">":
			return false
		case t == "*":
		case t != bs[i]:
			return false
		}
	}
	return len(as) == len(bs)
}

// OverlapSubjects says whether there are subjects that both patterns match.
func OverlapSubjects(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		switch {
		case as[i] == ">" || bs[i] == ">":
			return true
		case as[i] != "*" && bs[i] != "*" && as[i] != bs[i]:
			return false
		}
	}
	return len(as) == len(bs)
}
