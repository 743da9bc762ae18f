package settings

import (
	"sort"
	"strings"

	"github.com/agext/levenshtein"
)

// split cuts a value at its commas. HAProxy 2.2 and 2.6 keep only the first word of an unquoted
// value, so a comma at the end is what is left of "a, b".
func split(value string) ([]string, error) {
	words := strings.Split(value, ",")
	for i, w := range words {
		words[i] = strings.TrimSpace(w)
	}
	switch {
	case words[len(words)-1] == "" && len(words) > 1:
		return nil, errorf("ends with a comma: words after a space may have been lost: write it without spaces, or in quotes")
	case words[0] == "":
		return nil, errorf("begins with a comma, or is empty: name something before it")
	}
	for _, w := range words {
		if w == "" {
			return nil, errorf("two commas with nothing between them: remove one")
		}
	}
	return words, nil
}

// nearest finds the right word for a mistyped one, "" when none is near. What all words begin with
// says nothing about nearness and is cut off.
func nearest(word string, right []string, common string) string {
	best, score := "", 0.49
	word = strings.ToLower(strings.TrimPrefix(word, common))
	for _, r := range right {
		if s := levenshtein.Similarity(word, strings.ToLower(strings.TrimPrefix(r, common)), nil); s > score {
			best, score = r, s
		}
	}
	return best
}

// nearestOr is "did you mean x?", or the list to choose from.
func nearestOr(word string, right []string) string {
	if n := nearest(short(word), right, ""); n != "" {
		return "did you mean " + n + "?"
	}
	right = append([]string(nil), right...)
	sort.Strings(right)
	return "write one of " + strings.Join(right, ", ")
}
