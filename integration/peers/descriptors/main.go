// Command descriptors prints what the pinned Go modules say the protocols are.
//
// It links the generated packages of the reference implementation and lists every message, field, enum, value, service and
// method of them as one sorted text. protos/tests/upstream.rs prints the same text from our own .proto files and compares.
//
// With arguments, only files of the named proto packages are listed.
package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/containerd/cgroups/v3/cgroup1/stats"
	_ "github.com/containerd/cgroups/v3/cgroup2/stats"
	_ "github.com/containerd/containerd/api/events"
	_ "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	_ "github.com/containerd/containerd/api/runtime/sandbox/v1"
	_ "github.com/containerd/containerd/api/runtime/task/v2"
	_ "github.com/containerd/containerd/api/runtime/task/v3"
	_ "github.com/containerd/containerd/api/services/containers/v1"
	_ "github.com/containerd/containerd/api/services/content/v1"
	_ "github.com/containerd/containerd/api/services/diff/v1"
	_ "github.com/containerd/containerd/api/services/events/v1"
	_ "github.com/containerd/containerd/api/services/images/v1"
	_ "github.com/containerd/containerd/api/services/introspection/v1"
	_ "github.com/containerd/containerd/api/services/leases/v1"
	_ "github.com/containerd/containerd/api/services/mounts/v1"
	_ "github.com/containerd/containerd/api/services/namespaces/v1"
	_ "github.com/containerd/containerd/api/services/sandbox/v1"
	_ "github.com/containerd/containerd/api/services/snapshots/v1"
	_ "github.com/containerd/containerd/api/services/streaming/v1"
	_ "github.com/containerd/containerd/api/services/tasks/v1"
	_ "github.com/containerd/containerd/api/services/transfer/v1"
	_ "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	_ "github.com/containerd/containerd/api/services/version/v1"
	_ "github.com/containerd/containerd/api/types"
	_ "github.com/containerd/containerd/api/types/runc/options"
	_ "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	_ "github.com/containerd/containerd/api/types/task"
	_ "github.com/containerd/containerd/api/types/transfer"
	_ "github.com/containerd/nri/pkg/api"
	_ "google.golang.org/genproto/googleapis/rpc/status"
	_ "google.golang.org/protobuf/types/known/anypb"
	_ "google.golang.org/protobuf/types/known/durationpb"
	_ "google.golang.org/protobuf/types/known/emptypb"
	_ "google.golang.org/protobuf/types/known/fieldmaskpb"
	_ "google.golang.org/protobuf/types/known/structpb"
	_ "google.golang.org/protobuf/types/known/timestamppb"
	_ "google.golang.org/protobuf/types/known/wrapperspb"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	wanted := os.Args[1:]
	var l listing
	protoregistry.GlobalFiles.RangeFiles(func(fd protoreflect.FileDescriptor) bool {
		if len(wanted) == 0 || slices.Contains(wanted, string(fd.Package())) {
			l.file(protodesc.ToFileDescriptorProto(fd))
		}
		return true
	})
	slices.Sort(l.lines)
	out := bufio.NewWriter(os.Stdout)
	for _, line := range l.lines {
		fmt.Fprintln(out, line)
	}
	if err := out.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// listing collects one line for each fact. The order of declarations is not a fact: the lines are sorted at the end.
type listing struct{ lines []string }

func (l *listing) add(words ...string) {
	words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
	l.lines = append(l.lines, strings.Join(words, " "))
}

func (l *listing) file(f *descriptorpb.FileDescriptorProto) {
	prefix := ""
	if f.GetPackage() != "" {
		prefix = f.GetPackage() + "."
	}
	for _, m := range f.GetMessageType() {
		l.message(prefix, m)
	}
	for _, e := range f.GetEnumType() {
		l.enum(prefix, e)
	}
	for _, x := range f.GetExtension() {
		l.field("extension", prefix+x.GetName(), x, nil)
	}
	for _, s := range f.GetService() {
		name := prefix + s.GetName()
		l.add("service", name, flag(s.GetOptions().GetDeprecated(), "deprecated"))
		for _, m := range s.GetMethod() {
			l.add("method", name+"/"+m.GetName(),
				flag(m.GetClientStreaming(), "stream")+m.GetInputType(), "->",
				flag(m.GetServerStreaming(), "stream")+m.GetOutputType(),
				flag(m.GetOptions().GetDeprecated(), "deprecated"))
		}
	}
}

func (l *listing) message(prefix string, m *descriptorpb.DescriptorProto) {
	name := prefix + m.GetName()
	l.add("message", name,
		flag(m.GetOptions().GetMapEntry(), "map_entry"), flag(m.GetOptions().GetDeprecated(), "deprecated"))
	for _, f := range m.GetField() {
		l.field("field", name+"."+f.GetName(), f, m.GetOneofDecl())
	}
	for _, r := range m.GetReservedRange() {
		l.add("reserved", name, fmt.Sprintf("%d..%d", r.GetStart(), r.GetEnd()))
	}
	for _, r := range m.GetReservedName() {
		l.add("reserved", name, r)
	}
	for _, n := range m.GetNestedType() {
		l.message(name+".", n)
	}
	for _, e := range m.GetEnumType() {
		l.enum(name+".", e)
	}
}

func (l *listing) field(what, name string, f *descriptorpb.FieldDescriptorProto, oneofs []*descriptorpb.OneofDescriptorProto) {
	kind := strings.ToLower(strings.TrimPrefix(f.GetType().String(), "TYPE_"))
	label := strings.ToLower(strings.TrimPrefix(f.GetLabel().String(), "LABEL_"))
	oneof := ""
	if f.OneofIndex != nil && !f.GetProto3Optional() {
		oneof = "oneof=" + oneofs[f.GetOneofIndex()].GetName()
	}
	l.add(what, name, fmt.Sprint(f.GetNumber()), label, kind, f.GetTypeName(), f.GetExtendee(), oneof,
		"json="+f.GetJsonName(),
		flag(f.GetProto3Optional(), "presence"), flag(f.GetOptions().GetDeprecated(), "deprecated"))
}

func (l *listing) enum(prefix string, e *descriptorpb.EnumDescriptorProto) {
	name := prefix + e.GetName()
	l.add("enum", name,
		flag(e.GetOptions().GetAllowAlias(), "alias"), flag(e.GetOptions().GetDeprecated(), "deprecated"))
	for _, v := range e.GetValue() {
		l.add("value", name+"."+v.GetName(), fmt.Sprint(v.GetNumber()), flag(v.GetOptions().GetDeprecated(), "deprecated"))
	}
}

// flag is word if on, else nothing.
func flag(on bool, word string) string {
	if on {
		return word
	}
	return ""
}
