# One image with the controller and the speaker, static. BUILD needs Go 1.26; BASE needs nothing.
ARG BUILD=golang:1.26
ARG BASE=scratch

FROM --platform=$BUILDPLATFORM ${BUILD} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
# The version that the programs report is the one that Go finds in .git.
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags="-s -w" -o /out/ ./controller ./speaker

FROM ${BASE}
COPY --from=build /out/controller /out/speaker /
# The speaker's DaemonSet asks for root, which its capabilities need; nothing else does.
USER 65532:65532
