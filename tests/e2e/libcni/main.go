// Command libcni calls CNI plugins as a container runtime does: by the library that runtimes are built with. It reads one
// request from standard input, and answers with what the library made of it and with every call of a plugin that the library
// made on the way. What plugins say on standard error goes there.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// What is to be done.
type request struct {
	// A verb of the specification; VALIDATE and CACHED are of the library alone.
	Verb string `json:"verb"`
	// Folders with plugins.
	Path []string `json:"path"`
	// Where the library keeps results between its calls.
	CacheDir string `json:"cacheDir"`
	// A list of plugins, or the configuration of one.
	Network json.RawMessage `json:"network"`
	// For the verbs about an attachment.
	Attachment attachment `json:"attachment"`
	// For GC. Without it the library is told of no list; with it, of the list in it, which may be Go's nil.
	Valid *validList `json:"valid"`
	// For VERSION.
	Plugin string `json:"plugin"`
}

// What a runtime knows of a container.
type attachment struct {
	ContainerID  string         `json:"containerId"`
	Namespace    string         `json:"namespace"`
	Interface    string         `json:"interface"`
	Args         [][2]string    `json:"args"`
	Capabilities map[string]any `json:"capabilities"`
}

type validList struct {
	Attachments []types.GCAttachment `json:"attachments"`
}

// What came of it.
type answer struct {
	Result any      `json:"result,omitempty"`
	Error  *failure `json:"error,omitempty"`
	Calls  []call   `json:"calls"`
}

// The code is the plugin's; 0 where the library failed by itself.
type failure struct {
	Code    uint   `json:"code"`
	Message string `json:"message"`
}

// One call of a plugin.
type call struct {
	Verb   string          `json:"verb"`
	Plugin string          `json:"plugin"`
	Input  json.RawMessage `json:"input"`
	Output string          `json:"output"`
}

// recorder starts plugins as the library would, and remembers what it said to whom.
type recorder struct {
	invoke.RawExec
	version.PluginDecoder
	calls []call
}

func (r *recorder) ExecPlugin(ctx context.Context, path string, input []byte, environment []string) ([]byte, error) {
	// The environment holds what this program was started with, too; the last one counts.
	verb := ""
	for _, variable := range environment {
		if value, found := strings.CutPrefix(variable, "CNI_COMMAND="); found {
			verb = value
		}
	}
	output, err := r.RawExec.ExecPlugin(ctx, path, input, environment)
	r.calls = append(r.calls, call{verb, filepath.Base(path), slices.Clone(input), string(output)})
	return output, err
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "libcni:", err)
		os.Exit(1)
	}
}

func run() error {
	var asked request
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return fmt.Errorf("the request on standard input: %w", err)
	}
	plugins := &recorder{RawExec: invoke.RawExec{Stderr: os.Stderr}, calls: []call{}}
	result, err := serve(context.Background(), libcni.NewCNIConfigWithCacheDir(asked.Path, asked.CacheDir, plugins), &asked)
	answered := answer{Result: result, Calls: plugins.calls}
	if err != nil {
		answered.Error = &failure{Message: err.Error()}
		var refused *types.Error
		if errors.As(err, &refused) {
			answered.Error.Code = refused.Code
		}
	}
	return json.NewEncoder(os.Stdout).Encode(answered)
}

func serve(ctx context.Context, cni *libcni.CNIConfig, asked *request) (any, error) {
	if asked.Verb == "VERSION" {
		info, err := cni.GetVersionInfo(ctx, asked.Plugin)
		if err != nil {
			return nil, err
		}
		return info.SupportedVersions(), nil
	}
	network, err := read(asked.Network)
	if err != nil {
		return nil, err
	}
	runtime := &libcni.RuntimeConf{
		ContainerID:    asked.Attachment.ContainerID,
		NetNS:          asked.Attachment.Namespace,
		IfName:         asked.Attachment.Interface,
		Args:           asked.Attachment.Args,
		CapabilityArgs: asked.Attachment.Capabilities,
	}
	switch asked.Verb {
	case "ADD":
		return inEveryVersion(cni.AddNetworkList(ctx, network, runtime))
	case "CACHED":
		return inEveryVersion(cni.GetNetworkListCachedResult(network, runtime))
	case "CHECK":
		return nil, cni.CheckNetworkList(ctx, network, runtime)
	case "DEL":
		return nil, cni.DelNetworkList(ctx, network, runtime)
	case "GC":
		var valid *libcni.GCArgs
		if asked.Valid != nil {
			valid = &libcni.GCArgs{ValidAttachments: asked.Valid.Attachments}
		}
		return nil, cni.GCNetworkList(ctx, network, valid)
	case "STATUS":
		return nil, cni.GetStatusNetworkList(ctx, network)
	case "VALIDATE":
		capabilities, err := cni.ValidateNetworkList(ctx, network)
		slices.Sort(capabilities)
		return capabilities, err
	}
	return nil, fmt.Errorf("there is no verb %q", asked.Verb)
}

// read reads a network as runtimes do: what lists no plugins is the configuration of one.
func read(network []byte) (*libcni.NetworkConfigList, error) {
	var list struct {
		Plugins []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(network, &list); err != nil {
		return nil, fmt.Errorf("the network of the request: %w", err)
	}
	if list.Plugins != nil {
		return libcni.ConfListFromBytes(network)
	}
	one, err := libcni.ConfFromBytes(network)
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(one)
}

// inEveryVersion gives a result as the library read it ("own"), and what it converts it to, by version.
func inEveryVersion(result types.Result, err error) (any, error) {
	if err != nil || result == nil {
		return nil, err
	}
	forms := map[string]types.Result{"own": result}
	for _, name := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		form, err := result.GetAsVersion(name)
		if err != nil {
			return nil, fmt.Errorf("the result cannot be converted to %s: %w", name, err)
		}
		bytes, err := json.Marshal(form)
		if err != nil {
			return nil, err
		}
		// What the library writes it must be able to read.
		if forms[name], err = create.CreateFromBytes(bytes); err != nil {
			return nil, fmt.Errorf("the result in version %s cannot be read: %w", name, err)
		}
	}
	return forms, nil
}
