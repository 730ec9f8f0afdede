package libvirt

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"varve/integration/guest"
)

// domain is a virtual machine under QEMU's software CPU that boots the test
// guest. The variable of its environment lets the tests find the process.
var domain = template.Must(template.New("domain").Parse(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{{.Name}}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
{{- if .Code}}
    <loader readonly='yes' type='pflash'>{{.Code}}</loader>
    <nvram>{{.Variables}}</nvram>
{{- end}}
    <kernel>{{.Guest.Kernel}}</kernel>
    <initrd>{{.Guest.Initramfs}}</initrd>
    <cmdline>{{.Guest.Arguments}}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{{.Disk}}
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{{.Guest.Console}}'/><target port='0'/></serial>
    <serial type='unix'><source mode='connect' path='{{.Guest.Serial}}'/><target port='1'/></serial>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline><qemu:env name='VARVE_TEST_RUN' value='{{.Run}}'/></qemu:commandline>
</domain>
`))

// Define defines a domain that boots a prepared guest, with the disks that are
// given as XML elements.
func (d *Daemon) Define(name string, p *guest.Prepared, disks string) {
	d.t.Helper()
	d.DefineUEFI(name, p, disks, "", "")
}

// DefineUEFI does the same with a UEFI firmware and the file of its variables, where they
// are not "".
func (d *Daemon) DefineUEFI(name string, p *guest.Prepared, disks, code, variables string) {
	d.t.Helper()
	file := filepath.Join(d.dir, name+".xml")
	d.write(file, name, p, disks, code, variables)
	d.Run("define", file)
}

// WriteDomain writes what Define defines to a file.
func (d *Daemon) WriteDomain(file, name string, p *guest.Prepared, disks string) {
	d.t.Helper()
	d.write(file, name, p, disks, "", "")
}

func (d *Daemon) write(file, name string, p *guest.Prepared, disks, code, variables string) {
	d.t.Helper()
	var text strings.Builder
	err := domain.Execute(&text, map[string]any{
		"Name": name, "Guest": p, "Disk": disks, "Run": os.Getenv("VARVE_TEST_RUN"), "Code": code, "Variables": variables,
	})
	if err == nil {
		err = os.WriteFile(file, []byte(text.String()), 0o644)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// Disk is the XML element of a disk on a raw file, with further attributes of its
// driver.
func Disk(file, driver string) string { return disk(file, "raw", driver, "vda", "") }

// Qcow2 is the same on a qcow2.
func Qcow2(file string) string { return disk(file, "qcow2", "", "vda", "") }

// ReadOnlyDisk is the same of a second disk that the guest only reads.
func ReadOnlyDisk(file, driver string) string {
	return "\n" + disk(file, "raw", driver, "vdb", "\n      <readonly/>")
}

func disk(file, format, driver, device, more string) string {
	return fmt.Sprintf(`    <disk type='file' device='disk'>
      <driver name='qemu' type='%s' %s/>
      <source file='%s'/>
      <target dev='%s' bus='virtio'/>%s
    </disk>`, format, driver, file, device, more)
}
