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
			if i != j && covers(other, s) && (!covers(s, other) || j < i) {
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

// covers says whether every subject that b matches is matched by a.
func covers(a, b string) bool {
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
