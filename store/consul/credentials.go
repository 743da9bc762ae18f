package consul

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxCredentials is the most that is read of one file: a bundle of all public CAs has a fifth of it.
const maxCredentials = 1 << 20

// digest tells contents of files apart. Their times and sizes would not do: a token that is replaced twice within one tick
// of the file system's clock has the same.
type digest [sha256.Size]byte

// credentials are the files of token, CA and client certificate as they were read together.
type credentials struct {
	files  map[string]file
	digest digest
}

type file struct {
	data []byte
	err  error
}

// readFiles reads what Consul's environment names.
func readFiles(getenv func(string) string) credentials {
	c := credentials{files: map[string]file{}}
	sum := sha256.New()
	for _, path := range append(caFiles(getenv), getenv("CONSUL_HTTP_TOKEN_FILE"), getenv("CONSUL_CLIENT_CERT"), getenv("CONSUL_CLIENT_KEY")) {
		if path == "" {
			continue
		}
		data, err := readFile(path)
		c.files[path] = file{data, err}
		fmt.Fprintf(sum, "%q %d %v\n", path, len(data), err)
		sum.Write(data)
	}
	sum.Sum(c.digest[:0])
	return c
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	if err == nil && len(data) > maxCredentials {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxCredentials)
	}
	return data, err
}

func caFiles(getenv func(string) string) (files []string) {
	if f := getenv("CONSUL_CACERT"); f != "" {
		files = append(files, f)
	}
	if dir := getenv("CONSUL_CAPATH"); dir != "" {
		found, _ := filepath.Glob(filepath.Join(dir, "*")) // the pattern is a good one unless dir is not
		files = append(files, found...)
	}
	return files
}

// parse returns the token, and how TLS is to be spoken: nil when it is not.
func (c credentials) parse(speaksTLS bool, getenv func(string) string) (token string, config *tls.Config, err error) {
	if token, err = c.token(getenv); err != nil || !speaksTLS {
		return token, nil, err
	}
	config = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: getenv("CONSUL_TLS_SERVER_NAME")}
	if verify, err := strconv.ParseBool(getenv("CONSUL_HTTP_SSL_VERIFY")); err == nil && !verify {
		config.InsecureSkipVerify = true //nolint:gosec // the operator's own setting
	}
	if config.RootCAs, err = c.roots(getenv); err != nil {
		return "", nil, fmt.Errorf("read the CA of Consul: %w", err)
	}
	cert, key := getenv("CONSUL_CLIENT_CERT"), getenv("CONSUL_CLIENT_KEY")
	if cert == "" && key == "" {
		return token, config, nil
	}
	certFile, keyFile := c.files[cert], c.files[key]
	pair, err := tls.X509KeyPair(certFile.data, keyFile.data)
	if err = errors.Join(certFile.err, keyFile.err, err); err != nil {
		return "", nil, fmt.Errorf("read CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return token, config, nil
}

func (c credentials) token(getenv func(string) string) (string, error) {
	path := getenv("CONSUL_HTTP_TOKEN_FILE")
	if path == "" {
		return getenv("CONSUL_HTTP_TOKEN"), nil
	}
	f := c.files[path]
	if f.err != nil {
		return "", fmt.Errorf("read CONSUL_HTTP_TOKEN_FILE: %w", f.err)
	}
	token := strings.TrimSpace(string(f.data))
	if token == "" { // also while it is being written
		return "", fmt.Errorf("read CONSUL_HTTP_TOKEN_FILE: %s is empty: write the token into it, or unset the variable", path)
	}
	return token, nil
}

// roots is nil where the machine's own count.
func (c credentials) roots(getenv func(string) string) (*x509.CertPool, error) {
	files := caFiles(getenv)
	if len(files) == 0 && getenv("CONSUL_CAPATH") != "" {
		return nil, errors.New("CONSUL_CAPATH has no files")
	}
	if len(files) == 0 {
		return nil, nil
	}
	pool := x509.NewCertPool()
	for _, path := range files {
		f, ok := c.files[path]
		if ok && f.err != nil {
			return nil, f.err
		}
		if !pool.AppendCertsFromPEM(f.data) {
			return nil, fmt.Errorf("no certificate in %s", path)
		}
	}
	return pool, nil
}
