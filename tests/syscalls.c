/* Preloaded: from the n-th write, fsync or rename on a file under a folder on, one or all of them fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long until = -1; /* calls before the one that fails; -1: none does */
static int all, struck;
static char under[4096];

void faults_arm(long n, int every, const char *folder) {
    until = n, all = every, struck = 0;
    snprintf(under, sizeof under, "%s", folder);
}

int faults_disarm(void) {
    until = -1;
    return struck;
}

static int at(const char *path) {
    if (until < 0 || strncmp(path, under, strlen(under)) != 0) return 0;
    if (until > 0) return until--, 0;
    if (struck && !all) return 0;
    return struck = 1;
}

static int on(int fd) {
    char link[64], path[4096];
    if (until < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return at(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(error) return errno = (error), -1

ssize_t write(int fd, const void *b, size_t n) { if (on(fd)) FAIL(ENOSPC); return REAL(write)(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { if (on(fd)) FAIL(ENOSPC); return REAL(pwrite)(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { if (on(fd)) FAIL(ENOSPC); return REAL(pwrite64)(fd, b, n, o); }
int fsync(int fd) { if (on(fd)) FAIL(EIO); return REAL(fsync)(fd); }
int fdatasync(int fd) { if (on(fd)) FAIL(EIO); return REAL(fdatasync)(fd); }
int rename(const char *a, const char *b) { if (at(b)) FAIL(EIO); return REAL(rename)(a, b); }
int renameat(int d, const char *a, int e, const char *b) { if (at(b)) FAIL(EIO); return REAL(renameat)(d, a, e, b); }
