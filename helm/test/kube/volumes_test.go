//go:build linux

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// mountVolumes creates the volumes of a pod, and returns the directory of each by name.
func (k *kubelet) mountVolumes(ctx context.Context, pod *corev1.Pod, dir string) (map[string]string, error) {
	all := make(map[string]string)
	for _, v := range pod.Spec.Volumes {
		at := volumeDir(dir, v)
		var err error
		switch {
		case v.PersistentVolumeClaim != nil:
			at, err = k.claimed(ctx, pod, v.PersistentVolumeClaim.ClaimName)
		case v.Secret != nil:
			err = k.writeSecret(ctx, pod, v.Secret, at)
		case v.EmptyDir != nil:
			err = errors.Join(os.MkdirAll(at, 0o777), os.Chmod(at, 0o777))
		default:
			err = errors.New("the kubelet of the test does not know its kind")
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		all[v.Name] = at
	}
	return all, nil
}

// volumeDir returns the directory of a volume that only the pod uses.
func volumeDir(dir string, v corev1.Volume) string { return filepath.Join(dir, "volumes", v.Name) }

// claimed returns the directory of a claim's volume, and makes it writable for the group of the pod.
func (k *kubelet) claimed(ctx context.Context, pod *corev1.Pod, name string) (string, error) {
	claim, err := k.client.CoreV1().PersistentVolumeClaims(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if claim.Status.Phase != corev1.ClaimBound {
		return "", fmt.Errorf("the claim %s is %s", name, claim.Status.Phase)
	}
	volume, err := k.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	at := volume.Spec.HostPath.Path
	if group := pod.Spec.SecurityContext.FSGroup; group != nil {
		err = errors.Join(os.Chown(at, 0, int(*group)), os.Chmod(at, 0o770|os.ModeSetgid))
	}
	return at, err
}

// writeSecret writes the files of a Secret as the kubelet does: atomically, by replacing the link ..data, and only if
// they changed.
func (k *kubelet) writeSecret(ctx context.Context, pod *corev1.Pod, source *corev1.SecretVolumeSource,
	at string) error {
	secret, err := k.client.CoreV1().Secrets(pod.Namespace).Get(ctx, source.SecretName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	items := source.Items
	if items == nil {
		for key := range secret.Data {
			items = append(items, corev1.KeyToPath{Key: key, Path: key})
		}
	}
	files := make(map[string][]byte)
	for _, item := range items {
		data, ok := secret.Data[item.Key]
		if !ok {
			return fmt.Errorf("the Secret %s has no key %s", source.SecretName, item.Key)
		}
		files[item.Path] = data
	}
	if sameFiles(at, files) {
		return nil
	}
	now := fmt.Sprintf("..%s", time.Now().Format("2006_01_02_15_04_05.000000000"))
	if err := os.MkdirAll(filepath.Join(at, now), 0o755); err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(at, now, name)
		if err := os.WriteFile(path, data, os.FileMode(*source.DefaultMode)); err != nil {
			return err
		}
		if group := pod.Spec.SecurityContext.FSGroup; group != nil {
			if err := os.Chown(path, 0, int(*group)); err != nil {
				return err
			}
		}
	}
	before, _ := os.Readlink(filepath.Join(at, "..data"))
	if err := errors.Join(
		os.Symlink(now, filepath.Join(at, "..data_tmp")),
		os.Rename(filepath.Join(at, "..data_tmp"), filepath.Join(at, "..data")),
	); err != nil {
		return err
	}
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(at, name)); err != nil &&
			!errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if before == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(at, before))
}

func sameFiles(at string, files map[string][]byte) bool {
	there, err := os.ReadDir(filepath.Join(at, "..data"))
	if err != nil || len(there) != len(files) {
		return false
	}
	return !slices.ContainsFunc(there, func(e os.DirEntry) bool {
		has, err := os.ReadFile(filepath.Join(at, e.Name()))
		return err != nil || !bytes.Equal(has, files[e.Name()])
	})
}
