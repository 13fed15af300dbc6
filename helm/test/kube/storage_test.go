//go:build linux

package kube

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const storageClass = "standard"

// storage provisions a directory for each claim, reachable from every node like a network disk. It keeps the directory
// after the claim is deleted, for checks.
type storage struct {
	client kubernetes.Interface
	dir    string
}

func (s *storage) start(ctx context.Context, f informers.SharedInformerFactory) error {
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: storageClass,
			Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner: "test/directories", AllowVolumeExpansion: new(true),
	}
	if _, err := s.client.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := f.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { s.provide(ctx, o.(*corev1.PersistentVolumeClaim)) },
		UpdateFunc: func(_, o any) { s.enlarge(ctx, o.(*corev1.PersistentVolumeClaim)) },
	})
	return err
}

// enlarge reports the requested capacity of a bound claim, as a driver does after it has enlarged the volume.
func (s *storage) enlarge(ctx context.Context, claim *corev1.PersistentVolumeClaim) {
	want := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if has, bound := claim.Status.Capacity[corev1.ResourceStorage]; !bound || has.Cmp(want) >= 0 {
		return
	}
	patch := fmt.Appendf(nil, `{"status":{"capacity":{"storage":%q}}}`, want.String())
	if _, err := s.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name,
		types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil && ctx.Err() == nil {
		log.Printf("claim %s: %v", claim.Name, err)
	}
}

func (s *storage) provide(ctx context.Context, claim *corev1.PersistentVolumeClaim) {
	if claim.Spec.VolumeName != "" {
		return
	}
	name := "pv-" + string(claim.UID)
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      claim.Spec.Resources.Requests,
			AccessModes:                   claim.Spec.AccessModes,
			StorageClassName:              storageClass,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(s.dir, name)},
			},
			ClaimRef: &corev1.ObjectReference{Namespace: claim.Namespace, Name: claim.Name,
				UID: claim.UID},
		},
	}
	if err := os.MkdirAll(volume.Spec.HostPath.Path, 0o755); err != nil {
		panic(err)
	}
	if _, err := s.client.CoreV1().PersistentVolumes().Create(ctx, volume, metav1.CreateOptions{}); err != nil &&
		ctx.Err() == nil {
		panic(err)
	}
}
