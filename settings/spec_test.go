package settings

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spoacme/spoacme/store"
)

func TestParseSpec(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, c := range []struct {
		in   string
		want store.Spec
	}{
		{"shop.example.com", store.Spec{Domains: []string{"shop.example.com"}}},
		{"Shop.Example.COM.,www.shop.example.com", store.Spec{Domains: []string{"shop.example.com", "www.shop.example.com"}}},
		{"b.example,a.example,B.example.", store.Spec{Domains: []string{"b.example", "a.example"}}},
		{" a.example , b.example ", store.Spec{Domains: []string{"a.example", "b.example"}}},
		{"bücher.example", store.Spec{Domains: []string{"xn--bcher-kva.example"}}},
		{"BÜCHER.example,xn--bcher-kva.example", store.Spec{Domains: []string{"xn--bcher-kva.example"}}},
		{"faß.example", store.Spec{Domains: []string{"xn--fa-hia.example"}}},
		{long + ".example", store.Spec{Domains: []string{long + ".example"}}},
		{"localhost", store.Spec{Domains: []string{"localhost"}}},
		{"r3---sn.example.com", store.Spec{Domains: []string{"r3---sn.example.com"}}},
		{"3com.example,1.2.example", store.Spec{Domains: []string{"3com.example", "1.2.example"}}},
		{"a.example,challenge=http-01,key=ec256", store.Spec{Domains: []string{"a.example"}}},
		{"a.example,key=rsa4096,profile=shortlived", store.Spec{Domains: []string{"a.example"}, KeyType: "rsa4096", Profile: "shortlived"}},
		{"key=EC384,a.example", store.Spec{Domains: []string{"a.example"}, KeyType: "ec384"}},
		{"a.example,ca=letsencrypt-staging", store.Spec{Domains: []string{"a.example"}, CA: "https://acme-staging-v02.api.letsencrypt.org/directory"}},
		{"a.example,ca=https://CA.lan:14000/dir?x=1", store.Spec{Domains: []string{"a.example"}, CA: "https://ca.lan:14000/dir?x=1"}},
	} {
		got, err := ParseSpec(c.in)
		if err != nil || !reflect.DeepEqual(got, c.want) || got.Validate() != nil {
			t.Errorf("ParseSpec(%q)\n got %+v, %v\nwant %+v", c.in, got, err, c.want)
		}
	}
}

// refused is an input and every line of its error, in any order.
type refused struct{ in, want string }

func TestParseSpecRefuses(t *testing.T) {
	for _, c := range append(refusedDomains(), refusedOptions()...) {
		_, err := ParseSpec(c.in)
		if err == nil {
			t.Errorf("ParseSpec(%q): no error\nwant %s", c.in, c.want)
			continue
		}
		got := strings.Split(err.Error(), "\n")
		want := strings.Split(c.want, "\n")
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("ParseSpec(%q)\n got %s\nwant %s", c.in, err, c.want)
		}
	}
}

func refusedDomains() []refused {
	label64 := strings.Repeat("a", 64) + ".example"
	name254 := strings.Repeat(strings.Repeat("a", 60)+".", 4) + "aa.example"
	return []refused{
		{"", "is empty: write the domains, separated by commas"},
		{" ", "is empty: write the domains, separated by commas"},
		{"a.example,", "ends with a comma: words after a space may have been lost: write it without spaces, or in quotes"},
		{",a.example", "begins with a comma, or is empty: name something before it"},
		{"a.example,,b.example", "two commas with nothing between them: remove one"},
		{"key=ec256", "names no domain: write at least one"},
		{"a.example b.example", `"a.example b.example": the character " " is not possible in a name: separate names by commas only`},
		{"_dmarc.example.com", `"_dmarc.example.com": an underscore is not possible in the name of a certificate: remove the name`},
		{label64, `"` + label64 + `" has a label of 64 characters, the limit is 63: shorten it`},
		{name254, `"` + name254[:80] + `…" has 254 characters, the limit is 253: shorten it`},
		{"*.*.example", `"*.*.example" has two wildcards: only one is possible, as the first label`},
		{"*foo.example.com", `"*foo.example.com": a wildcard is a whole label, the first one: write *.example.com`},
		{"foo.*.example", `"foo.*.example": a wildcard is a whole label, the first one: write *.example`},
		{"*", `"*": a wildcard is a whole label, the first one: write *.example.com`},
		{"*.example.org", `"*.example.org" is a wildcard, and a CA gives those for challenge=dns-01 only, which is not in this version: write the names one by one`},
		{"*.example.org,challenge=http-01", `"*.example.org" is a wildcard, and a CA gives those for challenge=dns-01 only, which is not in this version: write the names one by one`},
		{"*.example.org,www.example.org", `"www.example.org" is covered by *.example.org, and CAs refuse both in one certificate: remove it`},
		{"https://shop.example.com/", `"https://shop.example.com/" is a URL: write the name alone: shop.example.com`},
		{"http://shop.example.com:8080/x", `"http://shop.example.com:8080/x" is a URL: write the name alone: shop.example.com`},
		{"shop.example.com:443", `"shop.example.com:443" has a port: write the name alone: shop.example.com`},
		{"shop.example.com/", `"shop.example.com/": the character "/" is not possible in a name: separate names by commas only`},
		{"192.0.2.1", `"192.0.2.1" is an IP address: certificates are for names`},
		{"2001:db8::1", `"2001:db8::1" is an IP address: certificates are for names`},
		{"[::1]", `"[::1]" is an IP address: certificates are for names`},
		{"192.0.2.300", `"192.0.2.300" ends with a number, as no name does: write the whole name`},
		{"a..example", `"a..example" has an empty label: remove the dot too many`},
		{"a.example..", `"a.example.." has an empty label: remove the dot too many`},
		{".", `"." has an empty label: remove the dot too many`},
		{"-a.example", `"-a.example": a label can't begin or end with a hyphen: remove it`},
		{"a-.example", `"a-.example": a label can't begin or end with a hyphen: remove it`},
		{"a%b.example", `"a%b.example": the character "%" is not possible in a name: remove it`},
		{`"a.example"`, `"\"a.example\"": the character "\"" is not possible in a name: separate names by commas only`},
		{"ops@example.com", `"ops@example.com": the character "@" is not possible in a name: separate names by commas only`},
		{"${NAME}.example", `"${NAME}.example": the character "$" is not possible in a name: separate names by commas only`},
		{"xn--a.example", `"xn--a.example" is not a valid international name: check its spelling`},
		{"a\u202eb.example", `"a\u202eb.example" is not a valid international name: check its spelling`},
	}
}

func refusedOptions() []refused {
	return []refused{
		{"a.example,chalenge=http-01", "chalenge= is not an option: did you mean challenge?"},
		{"a.example,x=1", "x= is not an option: write one of ca, challenge, dns, key, profile"},
		{"a.example,key=ec256,key=ec384", "key= stands there twice: keep one"},
		{"a.example,key=rsa1024", "key=rsa1024 is not a key type: did you mean rsa2048?"},
		{"a.example,key=", "key= is not a key type: write one of ec256, ec384, rsa2048, rsa3072, rsa4096"},
		{"a.example,key=ec256+ec384", "key=ec256+ec384 names two keys of one family: write one of ec… and one of rsa…"},
		{"a.example,key=ec256+rsa2048", "key=ec256+rsa2048: two keys for one certificate are not in this version: choose one"},
		{"a.example,challenge=dns", "challenge=dns is not a challenge: did you mean dns-01?"},
		{"a.example,challenge=dns-01", "challenge=dns-01 is not in this version: use http-01, which needs no option"},
		{"a.example,challenge=dns-01,dns=route53", "challenge=dns-01 is not in this version: use http-01, which needs no option"},
		{"a.example,dns=route53", "dns=route53 is for challenge=dns-01 only: add that, or remove dns="},
		{"a.example,dns=", "dns= is not a DNS provider: write its short name, such as dns=route53"},
		{"a.example,profile=a b", "profile=a b is not a profile: write one that the CA offers, such as profile=shortlived"},
		{"a.example,ca=letsencrpt", `ca="letsencrpt" is not the short name of a CA: did you mean letsencrypt? (or a directory URL)`},
		{"a.example,ca=http://ca.lan/dir", `ca="http://ca.lan/dir": ACME goes over https only: write https://ca.lan/dir`},
		{"a_b.example,c:1.example,kay=ec256", `"a_b.example": an underscore is not possible in the name of a certificate: remove the name` + "\n" +
			`"c:1.example": the character ":" is not possible in a name: separate names by commas only` + "\n" +
			"kay= is not an option: did you mean key?"},
	}
}

func TestHundredNames(t *testing.T) {
	var names []string
	for i := range 101 {
		names = append(names, fmt.Sprintf("n%d.example", i))
	}
	if _, err := ParseSpec(strings.Join(names[:100], ",") + ",N0.example."); err != nil {
		t.Errorf("100 names: %v", err)
	}
	_, err := ParseSpec(strings.Join(names, ","))
	if want := "101 names, a certificate holds 100: split it in two"; err == nil || err.Error() != want {
		t.Errorf("101 names: got %v, want %s", err, want)
	}
}

// What is once normalised stays as it is, and no input breaks the parser.
func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{"a.example", "*.example,challenge=dns-01,dns=x", "bücher.example,key=rsa2048", "a..b,[::1]:1,http://x", "ⓐ。example", "a.example,ca=https://x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		spec, err := ParseSpec(in)
		if err != nil {
			if strings.Contains(err.Error(), "\x00") {
				t.Fatalf("a control character in the message: %q", err)
			}
			return
		}
		for _, d := range spec.Domains {
			if again, err := Domain(d); err != nil || again != d {
				t.Fatalf("Domain(%q) = %q, %v", d, again, err)
			}
			if len(d) > maxDomain || !isASCII(d) || strings.ToLower(d) != d {
				t.Fatalf("not normalised: %q", d)
			}
		}
		if err := spec.Validate(); err != nil {
			t.Fatalf("the store refuses %+v: %v", spec, err)
		}
		again, err := ParseSpec(strings.Join(spec.Domains, ","))
		if err != nil || !slices.Equal(again.Domains, spec.Domains) {
			t.Fatalf("%q: again %q, %v", spec.Domains, again.Domains, err)
		}
	})
}
